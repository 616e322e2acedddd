"""The threads: links and their sessions, heartbeats, handlers."""
