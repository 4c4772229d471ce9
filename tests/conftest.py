"""Settings of the whole suite."""

from __future__ import annotations

import torch

# Test processes run side by side; more threads than cores would slow all of them down.
torch.set_num_threads(1)
