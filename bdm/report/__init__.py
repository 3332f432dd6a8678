"""HTML report of a data set: results, tables and page."""
