"""Tools for an ONNX graph: sessions, graphs without their weights, stored weights, checks. No torch."""
