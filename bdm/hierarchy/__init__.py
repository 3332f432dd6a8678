"""Hierarchy of cell types: trees, noise levels, support and files."""
