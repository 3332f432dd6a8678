"""Tests between conditions of an experiment, and power analysis."""
