"""Interpretation of a model: ancestral states, genes of branches, and markers."""
