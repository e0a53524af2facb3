"""What the model computes, written for reading: `ops` (numpy, a formula a function), `model` (PyTorch)."""
