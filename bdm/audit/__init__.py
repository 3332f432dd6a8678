"""Membership inference attacks on generated cells, and on the models that generated them."""
