"""Reading, cutting, probing and rewriting ONNX graphs."""
