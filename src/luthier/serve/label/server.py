"""The page for labelling and the few calls it makes, for this machine alone.

Every request carries the token of the address that was printed; a Host or Origin of another place is refused, so that
no page elsewhere can reach in. Neither the page nor what it is sent says which model an answer came from.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from luthier.core.errors import MissingExtra
from luthier.serve.label.journal import Journal
from luthier.serve.label.pairs import Pair, is_swapped, order_for
from luthier.serve.label.results import tally, write_results

if TYPE_CHECKING:
    from fastapi import FastAPI

LARGEST_REQUEST = 4096
ANNOTATOR = Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f]+$")


class Judgement(BaseModel):
    """What the page sends when a key is pressed. `number`: how many lines of the annotator it knows of."""

    annotator: str = ANNOTATOR
    number: int = Field(ge=0)
    pair: str = Field(max_length=32)
    choice: Literal["left", "right", "tie", "skip", "undo"]


@dataclass
class Desk:
    """A labelling at work: the pairs, what was said, and where the result goes."""

    pairs: Sequence[Pair]
    journal: Journal
    out: Path
    token: str
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def state(self, annotator: str) -> dict[str, object]:
        """Return what the page shows an annotator: the next pair, blind, and how far everything is."""
        with self._lock:
            return self._state(annotator)

    def judge(self, said: Judgement) -> dict[str, object]:
        """Write a judgement down if it is new, and return what comes next."""
        with self._lock:  # requests come in several threads, and the result is one file
            return self._judge(said)

    def _state(self, annotator: str) -> dict[str, object]:
        person = self.journal.said(annotator)
        ordered = order_for(annotator, self.pairs)
        following = next((pair for pair in ordered if pair.id not in person.judged), None)
        shown: dict[str, object] = {
            "number": person.lines,
            "done": len(person.judged),
            "total": len(self.pairs),
            "pair": None,
            "tally": tally(self.pairs, self.journal.people).as_dict(),
        }
        if following is not None:
            left, right = (following.a, following.b)
            if is_swapped(annotator, following):
                left, right = right, left
            shown["pair"] = {"id": following.id, "prompt": following.prompt, "left": left, "right": right}
        return shown

    def _judge(self, said: Judgement) -> dict[str, object]:
        pair = next((p for p in self.pairs if p.id == said.pair), None)
        choice: str = said.choice
        if choice in ("left", "right") and pair is not None:
            choice = "ab"[(choice == "right") != is_swapped(said.annotator, pair)]
        if (pair is not None or choice == "undo") and self.journal.add(said.annotator, said.number, said.pair, choice):
            write_results(self.out, self.pairs, self.journal.people)
        return self._state(said.annotator)


def kept_token(path: Path) -> str:
    """Return the token that an open page knows already: made at the first start, readable by its owner alone."""
    known = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    if len(known) >= 16:
        return known
    token = secrets.token_urlsafe(18)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    with open(beside, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
        stream.write(token)
    beside.replace(path)
    return token


def make_app(desk: Desk, port: int) -> FastAPI:
    """Return the application.

    Raises:
        MissingExtra: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from fastapi.responses import HTMLResponse, JSONResponse
    except ImportError as error:
        raise MissingExtra("fastapi", "web", "luthier label") from error
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    origins = {f"http://{host}" for host in hosts}

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("x-token") or request.query_params.get("token") or ""
        origin = request.headers.get("origin")
        size = request.headers.get("content-length") or "0"
        if request.headers.get("host") not in hosts or (origin is not None and origin not in origins):
            return JSONResponse({"error": "This page is for this machine alone."}, 403)
        if not secrets.compare_digest(given.encode(), desk.token.encode()):
            return JSONResponse({"error": "The address is not complete: open the one that was printed."}, 403)
        if not size.isdecimal() or int(size) > LARGEST_REQUEST:
            return JSONResponse({"error": "The request is too large."}, 413)
        answer = await call_next(request)
        answer.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
        answer.headers.update({"Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"})
        return answer

    # The types of answers are left to what is returned: FastAPI cannot see names that were imported in here.
    @app.get("/", response_model=None)
    def page() -> object:
        nonce = secrets.token_urlsafe(12)
        text = (files("luthier.serve.label") / "page.html").read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'"
        return HTMLResponse(text, headers={"Content-Security-Policy": policy + "; base-uri 'none'; form-action 'none'"})

    @app.get("/state", response_model=None)
    def state(annotator: str) -> object:
        if not annotator.strip() or len(annotator) > 60:
            return JSONResponse({"error": "Give a name of at most 60 characters."}, 422)
        return JSONResponse(desk.state(annotator))

    @app.post("/judge", response_model=None)
    def judge(said: Judgement) -> object:
        return JSONResponse(desk.judge(said))

    return app


def serve(desk: Desk, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page on 127.0.0.1 until it is interrupted.

    Args:
        ready: told the address when the page can be opened.

    Raises:
        MissingExtra: uvicorn is not installed.
        OSError: the port is taken.
    """
    import socket

    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("uvicorn", "web", "luthier label") from error
    listening = socket.create_server(("127.0.0.1", port))
    actual = int(listening.getsockname()[1])
    app = make_app(desk, actual)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    ready(f"http://127.0.0.1:{actual}/?token={desk.token}")
    with suppress(KeyboardInterrupt):  # uvicorn ends in order, and then raises again what ended it
        server.run(sockets=[listening])
