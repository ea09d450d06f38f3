"""A chat endpoint on this machine that fails in every way an endpoint can, and counts what it was paid for."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Messages = list[dict[str, str]]
Verdict = Callable[[Messages], str]
FAULTS = ("429", "429-date", "500", "503", "cut", "garbage", "no-choices", "slow", "drip", "hang-up")


def answer_between(content: str, name: str) -> str:
    """Return what stands between the marks of a name in a question."""
    found = re.search(rf"\[{name} (\w+)\]\n(.*?)\n\[/{name} \1\]", content, re.DOTALL)
    assert found, content
    return found[2]


def longer_wins(messages: Messages) -> str:
    """A judge without a bias: the longer answer is better, equal lengths tie."""
    a, b = (len(answer_between(messages[0]["content"], name)) for name in ("answer A", "answer B"))
    return json.dumps({"reason": "length", "winner": "tie" if a == b else "A" if a > b else "B"})


def always_first(messages: Messages) -> str:
    """A judge that has a place it likes."""
    return 'Let me think {aloud}. {"reason": "it came first", "winner": "A"}'


def score_by_length(messages: Messages) -> str:
    """A judge that scores."""
    length = len(answer_between(messages[0]["content"], "answer"))
    return json.dumps({"reason": "length", "score": min(10, max(1, length))})


class JudgeServer(ThreadingHTTPServer):
    """The endpoint.

    Attributes:
        plan: the faults that a question meets before it is answered, by the number of the question.
        paid: answers that were sent whole, by content.
        unreadable: how often each question gets an answer first that is no verdict.
        break_after: so many answers are given; all that is asked after that gets the status 503.
        hold_after: so many answers are given; who asks after that waits until the process is gone.
    """

    daemon_threads = True

    def __init__(self, verdict: Verdict = longer_wins, plan: Sequence[Sequence[str]] = (), unreadable: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.verdict, self.plan, self.unreadable = verdict, plan, unreadable
        self.paid: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.numbers: dict[str, int] = {}
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict] = []
        self.hold_after: int | None = None
        self.break_after: int | None = None
        self.status: tuple[int, dict[str, str], str] | None = None
        self.holding = 0
        self.lock = threading.Lock()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed leave broken pipes; they are part of the test."""


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.headers.append(dict(self.headers))
        self._send(200, b"{}")

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps(body["messages"])
        with server.lock:
            server.headers.append(dict(self.headers))
            server.bodies.append(body)
            number = server.numbers.setdefault(key, len(server.numbers))
            attempt = server.requests[key]
            server.requests[key] += 1
            holds = server.hold_after is not None and sum(server.paid.values()) >= server.hold_after
            server.holding += holds
            breaks = server.break_after is not None and sum(server.paid.values()) >= server.break_after
        if server.status is not None:
            self._send(server.status[0], server.status[2].encode(), server.status[1])
            return
        if breaks:
            self._send(503, b"")
            return
        if holds:
            server.released.wait(30)
            return
        faults = server.plan[number % len(server.plan)] if server.plan else ()
        if attempt < len(faults):
            self._fail(faults[attempt])
            return
        turns = len(body["messages"]) // 2
        text = "I cannot decide {" if turns < server.unreadable else server.verdict(body["messages"])
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})
        with server.lock:
            # Counted before it is sent: whoever has got the answer has paid for it.
            server.paid[key] += 1
        self._send(200, reply.encode())

    def _fail(self, fault: str) -> None:
        if fault == "429":
            self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.01"})
        elif fault == "429-date":
            self._send(429, b"", {"Retry-After": "Mon, 01 Jan 2024 00:00:00 GMT"})
        elif fault in ("500", "503"):
            self._send(int(fault), b"<html>sorry</html>")
        elif fault == "garbage":
            self._send(200, b'{"choices": [')
        elif fault == "no-choices":
            self._send(200, b'{"error": null}')
        elif fault == "slow":
            self.server.released.wait(5)
            self.close_connection = True
        elif fault == "drip":  # a byte now and then, so that no single read waits long
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"{")
                self.wfile.flush()
                if self.server.released.wait(0.05):
                    break
            self.close_connection = True
        elif fault == "hang-up":
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"message": {"content": "half')
            self.close_connection = True

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(server: JudgeServer) -> Iterator[JudgeServer]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
