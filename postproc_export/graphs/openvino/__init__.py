"""Tails in an `openvino.Model`."""
