"""Simulate designed experiments with planted changes as the known truth."""
