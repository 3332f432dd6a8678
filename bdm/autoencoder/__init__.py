"""Autoencoder of counts: the network, its fit, type-specific decoders, posteriors, and files."""
