"""TensorRT engines on the device: finding one that fits, checking its sidecar, running it."""
