"""Differences between donors, and simulation of new donors."""
