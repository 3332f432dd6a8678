"""Autoencoder of counts: network, training, sub-populations and type-specific decoders; latents of cells."""
