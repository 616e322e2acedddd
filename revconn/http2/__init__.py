"""gRPC over HTTP/2, without I/O."""
