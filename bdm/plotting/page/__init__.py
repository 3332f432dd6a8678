"""The tree of cell types as a page for the browser that needs no network."""
