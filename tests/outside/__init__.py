"""A package that adds to rgbdseg through entry points alone: one of each thing that can be added."""
