"""Transmute cells to another type, and evaluate the result."""
