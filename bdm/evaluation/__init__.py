"""Evaluation of generated cells by held-out real cells, with real training cells as the floor."""
