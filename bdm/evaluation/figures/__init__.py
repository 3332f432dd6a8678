"""Figures of an evaluation; each shows the floor beside the generated cells, and can be read without colours."""
