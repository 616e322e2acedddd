"""Requests in flight, and who runs them."""
