"""Figures of models and of results, which ``bdm.pl`` lists; the tree as a page; and figures in files."""
