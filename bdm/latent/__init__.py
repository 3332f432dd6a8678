"""Latents of cells: coordinates, whitening, and moments of populations."""
