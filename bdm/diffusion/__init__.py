"""Diffusion over the hierarchy: the denoiser, its fit, the sampler, and encoding and decoding along branches."""
