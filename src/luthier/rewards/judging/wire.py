"""Requests to a server of OpenAI's form, sent patiently: paced, retried, bounded, with a key that never leaves by mistake.

The key goes into one header of requests to the named address and nowhere else: redirects are not followed, plain http
is refused beyond this machine, and what a server says is shown without it.
"""

from __future__ import annotations

import datetime
import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit, urlunsplit

from luthier.core.errors import Failure, Problem, UserError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more patience is asked again after this."""
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 507, 520, 521, 522, 523, 524, 529})


class NoAnswer(Failure):
    """A server did not answer, however often it was asked."""


class Fault(Exception):
    """One attempt failed, and another may not. `wait` is what the server asked for, in seconds."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass(frozen=True)
class Clock:
    """Time, so that tests need none."""

    now: Callable[[], float]
    sleep: Callable[[float], object]


@dataclass(frozen=True)
class Patience:
    """How a server is asked.

    Attributes:
        api_key_env: the environment variable that holds the key. None is needed where it is not set.
        timeout: seconds until a request that is not answered is given up.
        retries: how often a request is sent again.
        per_minute: the most requests in a minute, retries included.
        backoff: seconds before the first retry; each further one waits twice as long.
        max_bytes: the longest reply that is read.
        place: the recipe key or option that named the address, for messages.
    """

    api_key_env: str
    timeout: float
    retries: int
    per_minute: float | None = None
    backoff: float = 1.0
    max_bytes: int = 4 * 2**20
    place: str = "endpoint"


@dataclass
class _Pace:
    """Lets requests through one after another, never faster than agreed, and none while the server wants a pause."""

    clock: Clock
    per_minute: float | None
    next_slot: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        with self.lock:
            start = max(self.clock.now(), self.next_slot)
            self.next_slot = start + 60.0 / self.per_minute if self.per_minute else self.next_slot
        if start > self.clock.now():
            self.clock.sleep(start - self.clock.now())

    def pause(self, seconds: float) -> None:
        with self.lock:
            self.next_slot = max(self.next_slot, self.clock.now() + seconds)


class Wire:
    """An open connection to a server; many threads may ask at once.

    Raises:
        UserError: the address is none, or a key would travel in the clear.
    """

    def __init__(self, url: str, patience: Patience, clock: Clock | None = None, seed: int = 0) -> None:
        import httpx

        self._stopped = threading.Event()
        self.patience, self.clock = patience, clock or Clock(time.monotonic, self._stopped.wait)
        self._base = url
        address, is_local = server_url(url, "", patience.place)
        self._key = os.environ.get(patience.api_key_env, "").strip()
        if self._key and not is_local and not address.startswith("https:"):
            what = f"The key in {patience.api_key_env} would travel unencrypted to {address}."
            raise UserError(Problem(what, patience.place, "use https, or unset the variable if no key is needed"))
        if not (self._key.isascii() and self._key.isprintable()):
            what = f"The key in {patience.api_key_env} holds line breaks or characters that no key has."
            raise UserError(Problem(what, patience.place, "set the variable again, to the key alone"))
        headers = {"Accept-Encoding": "identity"}  # a compressed reply could unpack to any size
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # A proxy that the environment names is not asked for what runs on this machine.
        self._client = httpx.Client(
            headers=headers, timeout=patience.timeout, follow_redirects=False, trust_env=not is_local
        )
        self._pace = _Pace(self.clock, patience.per_minute)
        self._draw = random.Random(seed)
        self.retried = 0

    def stop(self) -> None:
        """Begin nothing new: who waits to try again gives up, and requests on their way are answered."""
        self._stopped.set()

    def close(self) -> None:
        """Close all connections."""
        self.stop()
        self._client.close()

    def ask(
        self,
        path: str,
        body: Callable[[], Mapping[str, object]] | None,
        read: Callable[[bytes], T],
        refused: Callable[[int, str], Exception | None] = lambda status, said: None,
        headers: Mapping[str, str] = {},
    ) -> T:
        """Send a request until it is answered, and return what `read` makes of the reply.

        Args:
            path: what follows the server's base, such as /completions.
            body: makes what is sent, anew for each attempt; None sends a GET.
            read: raises Fault for a reply that is none, which is asked for again.
            refused: may say what a status and the server's words mean (a Fault is tried again); None leaves it to us.

        Raises:
            UserError: the server refuses.
            NoAnswer: it did not answer however often it was asked.
        """
        url, _ = server_url(self._base, path, self.patience.place)
        for attempt in range(self.patience.retries + 1):
            self._pace.wait()
            if self._stopped.is_set():
                raise NoAnswer("Asking was stopped.")
            try:
                return read(self._send(url, None if body is None else body(), refused, headers))
            except Fault as fault:
                last = fault
            if attempt < self.patience.retries:
                self._rest(attempt, last.wait)
        tries = self.patience.retries + 1
        raise NoAnswer(f"{url} did not answer in {tries} tries: {last}.")  # pyright: ignore[reportPossiblyUnboundVariable]

    def _rest(self, attempt: int, wanted: float | None) -> None:
        """Wait before a retry: what the server asked for, else twice as long each time, with a random share."""
        self.retried += 1
        if wanted is not None:
            self._pace.pause(min(wanted, LONGEST_WAIT))
            return
        most = min(self.patience.backoff * 2**attempt, 60.0)
        self.clock.sleep(most * (0.5 + 0.5 * self._draw.random()))

    def _send(
        self,
        url: str,
        body: Mapping[str, object] | None,
        refused: Callable[[int, str], Exception | None],
        headers: Mapping[str, str],
    ) -> bytes:
        import httpx

        verb, sent = ("GET", None) if body is None else ("POST", body)
        try:
            with self._client.stream(verb, url, json=sent, headers=dict(headers)) as response:
                content = self._bounded(response, self.clock.now() + self.patience.timeout)
        except httpx.TimeoutException as error:
            raise Fault(f"no answer within {self.patience.timeout:g} s") from error
        except httpx.TransportError as error:
            raise Fault(self._clean(str(error)) or type(error).__name__) from error
        except httpx.InvalidURL as error:
            raise UserError(Problem(f"This is no address: {error}.", self.patience.place)) from error
        if response.status_code != 200:
            said = self._clean(_said(content))
            raise refused(response.status_code, said) or self._refusal(url, response, said)
        return content

    def _bounded(self, response: httpx.Response, deadline: float) -> bytes:
        """Read a reply that may be neither too long nor drip for ever: httpx limits the time between two bytes only."""
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > self.patience.max_bytes:
                raise Fault(f"the reply is longer than {self.patience.max_bytes // 2**20} MiB")
            if self.clock.now() > deadline:
                raise Fault("the reply did not end in time")
        return bytes(content)

    def _refusal(self, url: str, response: httpx.Response, said: str) -> Exception:
        """Return what a status other than 200 means: try again, or tell the user."""
        status, place, key = response.status_code, self.patience.place, self.patience.api_key_env
        if status in _AGAIN or status >= 500:
            return Fault(f"status {status}{said}", retry_after(response.headers.get("Retry-After")))
        if response.is_redirect:
            target = self._clean(str(response.headers.get("Location", "")))[:200]
            what = f"{url} redirects to {target}. Redirects are not followed: the key would go along."
            return UserError(Problem(what, place, "name the address that answers itself"))
        remedy = {
            401: f"put a valid key into the environment variable {key}",
            403: f"check the rights of the key in {key}",
            404: "check the address and the model's name",
        }.get(status, "check the model's name and what it accepts")
        return UserError(Problem(f"{url} answers with status {status}{said}.", place, remedy))

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def server_url(url: str, path: str, place: str = "endpoint") -> tuple[str, bool]:
    """Return the address of a path of a server, and whether it is on this machine.

    Args:
        url: the server's base, with or without its version (/v1 is meant then), or already the address.

    Raises:
        UserError: it is no http address, or holds a password.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        what = f'"{url}" is no address of an endpoint.'
        raise UserError(Problem(what, place, "write e.g. http://127.0.0.1:8000/v1 or https://HOST/v1"))
    if parts.username or parts.password:
        what = "The address of the endpoint holds a password."
        raise UserError(Problem(what, place, "put the key into an environment variable: --api-key-env NAME"))
    base = parts.path.rstrip("/")
    if not base.endswith(path):
        base = (base or "/v1") + path
    return urlunsplit((parts.scheme, parts.netloc, base, parts.query, "")), _is_local(parts.hostname)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after(value: str | None, now: datetime.datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for, which may be a number or a date; None for neither."""
    if not value:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds == seconds else None
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    now = now or datetime.datetime.now(datetime.UTC)
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - now).total_seconds())


def _said(content: bytes) -> str:
    """Return the beginning of what a server says of its refusal."""
    try:
        error = json.loads(content)["error"]
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        text = content[:300].decode("utf-8", "replace")
    text = " ".join(text.split())[:200]
    return f": {text}" if text else ""
