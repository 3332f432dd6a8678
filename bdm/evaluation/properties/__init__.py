"""Properties that benchmarks of simulators compare: of genes and cells, pairs of values, biology, structure and use."""
