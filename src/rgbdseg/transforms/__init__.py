"""From physical samples to model input: spatial moves, color changes, derived geometry, packing."""
