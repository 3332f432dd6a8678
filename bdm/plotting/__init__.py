"""Figures of models and results, exposed by ``bdm.pl``."""
