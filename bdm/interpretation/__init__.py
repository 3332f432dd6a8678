"""Interpretation of a model: ancestral states, genes of branches, markers, and their stability."""
