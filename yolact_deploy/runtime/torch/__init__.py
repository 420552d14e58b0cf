"""Inference with PyTorch: the operations after the trunk, and the eager backend."""
