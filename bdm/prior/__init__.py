"""Priors: distribution of latents on each branch, and sampling along the hierarchy."""
