"""Experiments: one file each, a function `get_config(variant)` on top of `configs.base`."""
