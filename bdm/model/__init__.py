"""The branched model: fit, files, effects of donors and covariates, and matching cells."""
