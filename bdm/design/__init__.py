"""Designed experiments: samples, composition and planted changes that users choose, and cells with this truth."""
