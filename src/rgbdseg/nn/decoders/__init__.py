"""Decoders of segmentation networks, and the blocks they are made of."""
