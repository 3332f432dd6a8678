"""Generation of cells: requests, sampling in chunks, and writing by blocks."""
