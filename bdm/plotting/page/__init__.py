"""The tree of cell types as an interactive page, with its template, style and script."""
