"""Lineages of cells: expression along a lineage tree and time, ancestors and moments that were never sampled."""
