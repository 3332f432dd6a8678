"""The fitted model: its parts, fit, files, and the cells that it can take."""
