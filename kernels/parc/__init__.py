"""ParCNetV2's operators: its oversized convolution with a gate, and its gated MLP."""
