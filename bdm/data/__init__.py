"""Labelled counts: reading, checks, selection of cells and genes, and writing."""
