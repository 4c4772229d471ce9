"""Trained models as one graph that other runtimes run: frames in, labels out, seen to keep the numbers."""
