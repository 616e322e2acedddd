"""The service itself: it is the same whether callers come to its port or through a gateway."""

import logging
import threading
import time

import grpc
import inventory_pb2_grpc
from inventory_pb2 import Level

logger = logging.getLogger("inventory")


class Inventory(inventory_pb2_grpc.InventoryServicer):
    """What there is, in memory."""

    def __init__(self):
        self._pieces = {"bolts": 12, "nuts": 7}
        self._changed = threading.Condition()

    def Take(self, request, context):
        """Take pieces of an item."""
        with self._changed:
            self._require(request.item, context)
            if self._pieces[request.item] < request.pieces:
                problem = f"there are {self._pieces[request.item]} {request.item}"
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
            return self._add(request.item, -request.pieces)

    def Watch(self, request, context):
        """Tell the level now, and each one that follows."""
        context.add_callback(self._wake)  # the caller has gone: look, instead of waiting on
        told = None
        while context.is_active():
            with self._changed:
                self._require(request.item, context)
                while self._pieces[request.item] == told and context.is_active():
                    self._changed.wait()
                told = self._pieces[request.item]
            if context.is_active():
                yield Level(item=request.item, pieces=told)  # without the lock: it may take long

    def Stock(self, request_iterator, context):
        """Count what a scanner puts on the shelves."""
        context.send_initial_metadata((("shelf", "a-12"),))
        scanned = 0
        for scan in request_iterator:
            with self._changed:
                self._require(scan.item, context)
                level = self._add(scan.item, 1)
            scanned += 1
            yield level
        context.set_trailing_metadata((("scanned", str(scanned)),))

    def _require(self, item, context):
        if item not in self._pieces:
            context.abort(grpc.StatusCode.NOT_FOUND, f"nobody has heard of {item}")

    def _add(self, item, pieces):
        self._pieces[item] += pieces
        self._changed.notify_all()
        return Level(item=item, pieces=self._pieces[item])

    def _wake(self):
        with self._changed:
            self._changed.notify_all()


class Log(grpc.ServerInterceptor):
    """Logs how long it takes to find each method; a stand-in for your own interceptors."""

    def intercept_service(self, continuation, handler_call_details):
        """Pass it on."""
        start = time.monotonic()
        handler = continuation(handler_call_details)
        took = time.monotonic() - start
        logger.info("%s: found in %.6f s", handler_call_details.method, took)
        return handler
