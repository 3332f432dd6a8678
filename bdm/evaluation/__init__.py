"""Evaluation of generated cells against held-out real cells."""
