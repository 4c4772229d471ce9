"""2.5D convolutions: the operator, its masks and the ways to compute it."""
