"""TensorRT engines: parse, profile, build, prove, and write them into a bundle."""
