"""The HTML report of a data set: choice of results, tables, texts, and pages."""
