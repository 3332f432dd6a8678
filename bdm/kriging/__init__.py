"""Values of genes where they were not measured, as conditional expectations of where they were (kriging)."""
