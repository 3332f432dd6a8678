"""Priors: the distribution of latents on each branch of the hierarchy, and how cells are sampled along it."""
