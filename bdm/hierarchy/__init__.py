"""Hierarchy of cell types: trees, noise levels, support, extension, comparison, and files."""
