"""What the embedded gateway costs: for each call, and for each connector that it holds."""
