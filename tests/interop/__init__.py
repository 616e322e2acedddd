"""Interop: connectors and clients in Go, Node, Java and Python meet at the embedded gateway.

A connector registers ``demo.Greeter`` of ``protos/demo.proto`` and echoes: the payload, and each
header ``echo-NAME`` as the header ``NAME``. ``Goodbye`` is not there. The header ``interop`` asks
for a failure (``fail``), a late answer (``wait``), or what the connector knows of the deadline
(``timeout``). A client tries the cases in ``peers.py`` and prints one line of JSON for each.

And with tools of other makes: grpcurl, ghz, grpc-health-probe, h2load, nghttp, curl,
and h2spec.

Missing tools skip the tests, and fail them in CI and where INTEROP=required.
"""
