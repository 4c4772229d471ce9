"""The complete, frozen description of a run, free of torch."""
