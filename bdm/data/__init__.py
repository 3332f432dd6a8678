"""Labelled counts: reading, checking, and preparing them."""
