"""The branched model: fit, files, cards and matching cells."""
