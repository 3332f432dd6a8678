"""Lineages: expression along a tree and time, also of unsampled ancestors."""
