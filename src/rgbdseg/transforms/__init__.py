"""From physical samples to model input: spatial moves, colour changes, derived geometry, packing."""
