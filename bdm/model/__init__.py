"""The branched model: fit, files, and matching cells."""
