"""Checks of the CUDA kernels and of whole networks on a real GPU."""
