"""Geometry of depth maps: back-projection, surface normals, the direction of gravity, HHA.

Pure batched torch functions for the CPU and the GPU; cameras are tensors (B, 4) of fx, fy, cx, cy in pixels.
"""
