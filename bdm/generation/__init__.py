"""Generation of cells from requests, and prediction of modalities."""
