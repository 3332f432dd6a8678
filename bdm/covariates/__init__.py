"""Continuous covariates, such as time, dose or age: how cells of a population change along them, and their values."""
