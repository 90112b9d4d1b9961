"""Published weights, read from safetensors files into the networks of this package."""
