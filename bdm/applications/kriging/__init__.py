"""Gaussian-process prediction (kriging) of gene values where they were not measured."""
