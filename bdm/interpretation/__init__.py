"""Interpretation of a model: ancestral states, genes of branches, markers of cell types."""
