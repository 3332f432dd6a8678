"""Donors: how they differ in expression, depth, composition and number of cells, and new donors."""
