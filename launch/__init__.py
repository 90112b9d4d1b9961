"""How a run starts elsewhere, on one host or many, and what it would need there."""
