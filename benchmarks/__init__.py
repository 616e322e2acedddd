"""What one answered request costs: `python -m benchmarks`, see README.md."""
