"""Ending an rpc with a status code of ours."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from revconn.core.status import StatusCode
from revconn.gateway.metadata import truncate_message

__all__ = ["set_status"]

_GRPC_STATUS = {StatusCode(status.value[0]): status for status in grpc.StatusCode}


def set_status(context: grpc.aio.ServicerContext[Any, Any], code: StatusCode, message: str) -> None:
    """What the rpc ends with once its handler returns; a failure discards the response.

    Unlike ``context.abort`` this raises nothing: grpc keeps what abort raises, and with it the
    call and the server, until the garbage collector comes by.
    """
    context.set_code(_GRPC_STATUS[code])
    context.set_details(truncate_message(message))
