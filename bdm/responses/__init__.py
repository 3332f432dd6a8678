"""Responses of cell types to conditions, and cells in conditions that were never measured."""
