"""The fewest layers to keep in FP32 so that a network in a lower precision meets a target."""
