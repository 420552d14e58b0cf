"""CUDA through the driver: devices, memory, streams, graphs, and our kernels on them."""
