"""The seam to the network: how bytes travel, and nothing of what they mean."""

from __future__ import annotations

from revconn.settings.options import Options
from revconn.settings.proxy import proxy_for
from revconn.settings.target import Target
from revconn.transport.base import Transport

__all__ = ["transport_for"]


def transport_for(target: Target, options: Options) -> Transport:
    """How one gateway is reached, as the options have it: nothing is opened yet.

    Raises :class:`ConfigurationError` for a proxy of the environment that is none.
    """
    # Imported here: an application pays for, and depends on, only the one it uses. A connector over
    # http2 does not import grpc.
    kind: type[Transport]
    if options.transport == "grpcio":
        from revconn.transport.grpcio import GrpcioTransport as kind
    else:
        from revconn.transport.http2 import Http2Transport as kind
    return kind(
        target,
        options.tls_for(target),
        # One of a name's addresses is connected to straight: options with a proxy were refused.
        proxy_for(target, options.proxy) if target.ip is None else None,
        keepalive_interval=options.keepalive_interval,
        keepalive_timeout=options.keepalive_timeout,
    )
