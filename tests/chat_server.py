"""A small OpenAI-compatible server on this machine, which answers by a function and misbehaves on request."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What it does and what it saw.

    Attributes:
      answer: body of a request -> content of the answer.
      faults: for the requests to come, one after the other: a status, (status, Retry-After), "hang", "cut",
        "no chat" (a body that is no completion), or "" (answers well).
    """

    url: str
    answer: Callable[[dict[str, Any]], str]
    faults: list[Any] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10}
    )
    released: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serve(answer: Callable[[dict[str, Any]], str]) -> Iterator[Server]:
    """A running server; its thread and its port are gone at the end."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.bodies.append(body)
                state.headers.append(dict(self.headers))
                state.times.append(time.monotonic())
                fault = state.faults.pop(0) if state.faults else ""
            if self.path != "/v1/chat/completions":
                fault = 404
            if fault == "hang":
                state.released.wait(20)
                return
            if fault == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices"')
                return
            status, retry = fault if isinstance(fault, tuple) else (fault, None)
            if isinstance(status, int):
                self._send(status, {"error": f"made {status}"}, retry)
            elif fault == "no chat":
                self._send(200, {"object": "list"})
            else:
                choices = [{"message": {"role": "assistant", "content": state.answer(body)}}]
                self._send(200, {"choices": choices, **({"usage": state.usage} if state.usage else {})})

        def _send(self, status: int, value: Any, retry: str | None = None) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            if retry is not None:
                self.send_header("Retry-After", retry)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state = Server(f"http://127.0.0.1:{server.server_port}/v1", answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join()
