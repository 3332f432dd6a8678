"""Extension of a fitted model by new cell types, and its report."""
