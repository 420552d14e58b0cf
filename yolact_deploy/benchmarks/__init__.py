"""Measuring: accuracy, agreement with the eager model, latency, memory, and the reports about them."""
