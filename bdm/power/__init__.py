"""Tests between the conditions of an experiment, and their power."""
