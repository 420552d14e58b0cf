"""What this computer is, has and is doing: CPU, GPUs, clocks, memory, energy, and what disturbs a measurement."""
