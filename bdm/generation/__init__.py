"""Generation of cells: requests, chunks of cells that are sampled together, and files in parts."""
