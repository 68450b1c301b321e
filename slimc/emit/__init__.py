"""From the intermediate representation to ONNX."""
