#!/bin/sh
# Snakemake runs a copy of this script in the new environment; rules/common.smk exports the source of bdm.
set -eu
case "${BDM_SOURCE:?is set by rules/common.smk}" in
    git+* | bdm==*) set -- "$BDM_SOURCE" ;;
    *) set -- --editable "$BDM_SOURCE" ;;
esac
python -m pip install --no-deps --no-build-isolation "$@"
