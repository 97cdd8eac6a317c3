"""What runs on the device: features, backends, CTC, recogniser. Imports numpy, never PyTorch."""
