"""Transmutation of cells to another type, and its evaluation."""
