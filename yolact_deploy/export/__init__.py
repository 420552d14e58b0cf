"""From PyTorch weights to ONNX, and from ONNX to engines. Only ``export.onnx`` and ``export.parity`` need torch."""
