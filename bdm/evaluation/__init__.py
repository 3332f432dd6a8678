"""Judging generated cells against held-out real cells, with real training cells as the floor."""
