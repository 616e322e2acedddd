"""The seam to the network: how bytes travel, and nothing of what they mean."""
