#!/bin/sh
# Snakemake runs this in the new environment, from a copy elsewhere: rules/common.smk exports where bdm is.
set -eu
case "${BDM_SOURCE:?is set by rules/common.smk}" in
    git+*) set -- "$BDM_SOURCE" ;;
    *) set -- --editable "$BDM_SOURCE" ;;
esac
python -m pip install --no-deps --no-build-isolation "$@"
