"""Audits of generated cells: what attacks can tell about who was in the training data."""
