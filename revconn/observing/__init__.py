"""What operators see of a running connector."""
