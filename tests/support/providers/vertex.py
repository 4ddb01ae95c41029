"""Vertex AI over gRPC, with the bodies of `gemini`, and faults of the connection.

Source: google/cloud/aiplatform/v1beta1/prediction_service.proto and
google/rpc/status.proto.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Self

from tests.support.providers.gemini import GEMINI
from tests.support.providers.server import Protocol, Script, ScriptedProvider, reset

VERTEX: Final = replace(GEMINI, is_grpc=True)
_SERVICE: Final = "google.cloud.aiplatform.v1beta1.PredictionService"
_STATUS_BYTES: Final = "grpc-status-details-bin"
# Seconds in which what was sent has reached the client.
_FLUSH: Final = 0.05


def serve(protocol: Protocol, script: Script) -> ScriptedProvider | VertexProvider:
    server = VertexProvider if protocol.is_grpc else ScriptedProvider
    return server(protocol, script)


class VertexProvider:
    """A gRPC server behind a relay, which cuts connections where the script says so."""

    def __init__(self, protocol: Protocol, script: Script) -> None:
        """Listen on a free port; `requests` collects the bodies that came."""
        self.requests: list[Any] = []
        self._protocol, self._script = protocol, script
        self._over = threading.Event()
        self._clients: set[socket.socket] = set()
        self._cut_off: set[socket.socket] = set()
        self._grpc = importlib.import_module("grpc")
        self._types = importlib.import_module("google.cloud.aiplatform_v1beta1.types")
        request, response = (
            self._types.GenerateContentRequest,
            self._types.GenerateContentResponse,
        )
        how = {
            "request_deserializer": request.deserialize,
            "response_serializer": response.serialize,
        }
        methods = {
            "GenerateContent": self._grpc.unary_unary_rpc_method_handler(
                self._whole, **how
            ),
            "StreamGenerateContent": self._grpc.unary_stream_rpc_method_handler(
                self._stream, **how
            ),
        }
        handler = self._grpc.method_handlers_generic_handler(_SERVICE, methods)
        self._server = self._grpc.server(ThreadPoolExecutor(4), handlers=(handler,))
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()
        self._server.stop(0)

    # --- the relay ---

    def _accept(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._clients.add(client)
                for pair in (client, server), (server, client):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _cut(self, *, hard: bool = False) -> None:
        """End all connections, by a reset if `hard`."""
        while self._clients:
            client = self._clients.pop()
            self._cut_off.add(client)
            with contextlib.suppress(OSError):
                if hard:
                    reset(client)
                # A thread that reads holds it open.
                client.shutdown(socket.SHUT_RD if hard else socket.SHUT_RDWR)
                self._over.wait(_FLUSH)
                client.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            if target not in self._cut_off:
                target.shutdown(socket.SHUT_RDWR)

    # --- the service ---

    def _whole(self, request: Any, context: Any) -> Any:
        self._begin(request, context)
        how = self._script.how
        if how in {"event", "first event"}:
            self._abort(context, self._protocol.error(500, "The server had an error"))
        if how == "empty":
            return self._types.GenerateContentResponse()
        self._break(how, context)
        return self._answer(self._protocol.whole(self._script.reply))

    def _stream(self, request: Any, context: Any) -> Iterator[Any]:
        self._begin(request, context)
        how = self._script.how
        error = self._protocol.error(500, "The server had an error")
        if how == "first event":
            self._abort(context, error)
        if how == "empty":
            return
        first, rest = self._protocol.events(self._script.reply)
        yield from map(self._answer, first)
        if how == "cut":
            return
        if how == "event":
            self._abort(context, error)
        self._break(how, context)
        yield from map(self._answer, rest)

    def _begin(self, request: Any, context: Any) -> None:
        """Note the request, and do what comes before an answer."""
        text = type(request).to_json(request)
        self.requests.append(json.loads(text))
        if self._script.error is not None:
            self._abort(context, self._script.error.body)
        if self._script.how == "head":
            context.send_initial_metadata(())
        if self._script.how in {"silence", "head"}:
            self._over.wait()
        if self._script.how in {"reset", "hangup"}:
            self._cut(hard=self._script.how == "reset")
            context.cancel()

    def _break(self, how: str, context: Any) -> None:
        """Do what comes in the middle of an answer."""
        if how in {"cut", "fin", "rst"}:
            self._over.wait(_FLUSH)
            self._cut(hard=how == "rst")
            context.cancel()
        if how == "stall":
            self._over.wait()

    def _answer(self, body: Any) -> Any:
        return self._types.GenerateContentResponse.from_json(json.dumps(body))

    def _abort(self, context: Any, body: Any) -> None:
        """End the call with an error in the form of `google.rpc.Status`."""
        facts = body["error"]
        code = getattr(self._grpc.StatusCode, facts["status"])
        pb = importlib.import_module("google.rpc.status_pb2")
        importlib.import_module("google.rpc.error_details_pb2")  # Names its details.
        parse = importlib.import_module("google.protobuf.json_format").ParseDict
        details = facts.get("details", [])
        message = {"code": code.value[0], "message": facts["message"]}
        status = parse({**message, "details": details}, pb.Status())
        context.set_trailing_metadata(((_STATUS_BYTES, status.SerializeToString()),))
        context.abort(code, facts["message"])
