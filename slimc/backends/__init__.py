"""What runs a model: ONNX Runtime, TensorRT, TensorRT-RTX, OpenVINO, behind one small protocol."""
