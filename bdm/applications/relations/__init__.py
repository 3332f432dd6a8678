"""Gene values at related places: responses of cell types to conditions, and expression along a lineage."""
