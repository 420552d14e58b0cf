"""CUDA through the driver: devices, memory, streams, graphs, and the kernels that run on them."""
