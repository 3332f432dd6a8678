#!/bin/sh
# Snakemake runs this in the new environment, from a copy elsewhere: rules/common.smk says where the checkout is.
set -eu
python -m pip install --no-deps --no-build-isolation --editable "${BDM_CHECKOUT:?is set by rules/common.smk}"
