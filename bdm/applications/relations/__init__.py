"""Gaussian processes of responses of cell types, and of expression along a lineage."""
