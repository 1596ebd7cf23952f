"""Time and work of each layer inside a real forward pass."""
