"""Published weights, read from .safetensors and .pth files into the networks of this package."""
