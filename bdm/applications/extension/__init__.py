"""Add new cell types to a fitted model, and report on them."""
