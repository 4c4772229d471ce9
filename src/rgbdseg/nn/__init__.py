"""Blocks that two or more model families use."""
