"""Shared foundations: errors, settings, files, checksums, seeds, threads and the training loop."""
