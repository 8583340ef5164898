"""An HTTP proxy that delays, refuses and cuts some of the requests to a server, and counts."""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

FAULTS = ("delay", "error_500", "error_503", "refused", "cut")
LONGEST_DELAY_SECONDS = 0.3


@dataclass(frozen=True)
class Traffic:
    """What went through.

    Attributes:
        port: of the proxy.
        faults: how often which was made.
        requests: how many there were of each method.
        read: how often which object was asked for; parts of it count by their range.
    """

    port: int
    faults: Counter[str]
    requests: Counter[str]
    read: Counter[str]


def never(path: str) -> None:
    return None


@contextmanager
def faulty_proxy(
    host: str, port: int, share: float, refused: Callable[[str], int | None] = never
) -> Iterator[Traffic]:
    """Passes requests on to a server.

    Args:
        host: of the server.
        port: likewise.
        share: of the requests that meet a fault, each kind equally often.
        refused: the status that a request for a path is answered with; None passes it on.
    """
    made, requests, read = Counter[str](), Counter[str](), Counter[str]()
    lock = threading.Lock()
    chance = random.Random(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self._body()
            with lock:
                fault = chance.choice(FAULTS) if chance.random() < share else "none"
                made[fault] += 1
                requests[self.command] += 1
                if self.command == "GET":
                    read[f"{self.path} {self.headers.get('Range', '')}"] += 1
            status = refused(self.path)
            if status is not None:
                self._answer(status, {"Content-Length": "0"}, b"")
                return
            if fault == "delay":
                time.sleep(chance.uniform(0, LONGEST_DELAY_SECONDS))
            if fault == "refused":
                self.close_connection = True
                self.connection.close()
                return
            if fault.startswith("error"):
                self._answer(int(fault[-3:]), {"Content-Length": "0"}, b"")
                return
            server = http.client.HTTPConnection(host, port, timeout=30)
            del self.headers["Transfer-Encoding"], self.headers["Expect"]
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            content = answer.read()
            headers = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("transfer-encoding", "connection")
            }
            if self.command != "HEAD":
                headers["Content-Length"] = str(len(content))
            server.close()
            if fault == "cut":
                content = content[: len(content) // 2]
                self.close_connection = True
            self._answer(answer.status, headers, content)
            if fault == "cut":
                self.connection.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            """Clients that gave up are no updates."""

    proxy = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield Traffic(proxy.server_address[1], made, requests, read)
    finally:
        proxy.shutdown()
        proxy.server_close()


@contextmanager
def between(share: float = 0.0, refused: Callable[[str], int | None] = never) -> Iterator[Traffic]:
    """Stands before the server of the tests: this process's AWS variables name the proxy.

    Arguments are those of ``faulty_proxy``.
    """
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert server.hostname is not None
    assert server.port is not None
    proxy = faulty_proxy(server.hostname, server.port, share, refused)
    with proxy as traffic, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{traffic.port}")
        yield traffic
