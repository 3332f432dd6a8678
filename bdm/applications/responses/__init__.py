"""Responses of cell types to conditions, measured or predicted."""
