"""Continuous covariates such as time, dose or age."""
