"""Shared foundations: errors, settings, files, saved objects, seeds, threads, progress and the training loop."""
