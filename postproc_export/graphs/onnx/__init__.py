"""Tails in an `onnx.ModelProto`."""
