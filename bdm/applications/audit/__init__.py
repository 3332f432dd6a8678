"""Membership inference attacks on generated cells and their models."""
