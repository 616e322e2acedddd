"""The rules of the wire protocol, pure: no thread, no socket, no clock (time is passed in)."""
