"""Effects on populations: batches, covariates, positions and donors; how they are fitted, asked for and applied."""
