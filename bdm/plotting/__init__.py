"""Figures of models and results, as matplotlib figures and interactive pages."""
