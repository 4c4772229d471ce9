"""Training, evaluation, prediction and checkpoints; the only place that knows Lightning."""
