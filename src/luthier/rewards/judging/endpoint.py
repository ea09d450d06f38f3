"""A chat endpoint of OpenAI's form, asked patiently: paced, retried, bounded, with a key that never leaves by mistake.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from luthier.core.errors import Failure, Problem, UserError

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 4 * 2**20
"""The longest reply that is read."""
LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more patience is asked again after this."""
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 507, 520, 521, 522, 523, 524, 529})

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a model answered, and what it was paid for."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class Address:
    """Where and how to ask.

    Attributes:
        url: the endpoint's base, such as https://api.example.com/v1, or the full address of its chat completions.
        model: the model's name there.
        api_key_env: the environment variable that holds the key. None is needed where it is not set.
        timeout: seconds until a request that is not answered is given up.
        retries: how often a request is sent again.
        per_minute: the most requests in a minute, retries included.
        backoff: seconds before the first retry; each further one waits twice as long.
    """

    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 6
    per_minute: float | None = None
    backoff: float = 1.0
    temperature: float = 0.0
    max_tokens: int = 1024


class NoAnswer(Failure):
    """An endpoint did not answer, however often it was asked."""


class _Fault(Exception):
    """One attempt failed, and another may not. `wait` is what the server asked for, in seconds."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass(frozen=True)
class Clock:
    """Time, so that tests need none."""

    now: Callable[[], float]
    sleep: Callable[[float], object]


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


class Endpoint:
    """An open connection to a chat endpoint; many threads may ask at once.

    Raises:
        UserError: the address is none, or a key would travel in the clear.
    """

    def __init__(self, address: Address, clock: Clock | None = None, seed: int = 0) -> None:
        import httpx

        self._stopped = threading.Event()
        self.address, self.clock = address, clock or Clock(time.monotonic, self._stopped.wait)
        self.url, is_local = chat_url(address.url)
        self._key = os.environ.get(address.api_key_env, "").strip()
        if self._key and not is_local and not self.url.startswith("https:"):
            what = f"The key in {address.api_key_env} would travel unencrypted to {self.url}."
            raise UserError(Problem(what, "endpoint", "use https, or unset the variable if no key is needed"))
        if not (self._key.isascii() and self._key.isprintable()):
            what = f"The key in {address.api_key_env} holds line breaks or characters that no key has."
            raise UserError(Problem(what, "endpoint", "set the variable again, to the key alone"))
        headers = {"Accept-Encoding": "identity"}  # a compressed reply could unpack to any size
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # A proxy that the environment names is not asked for what runs on this machine.
        self._client = httpx.Client(
            headers=headers, timeout=address.timeout, follow_redirects=False, trust_env=not is_local
        )
        self._pace = _Pace(self.clock, address.per_minute)
        self._draw = random.Random(seed)
        self._limit_name = "max_tokens"
        self._sends_temperature = True
        self.retried = 0
        self.notes: list[str] = []

    def stop(self) -> None:
        """Begin nothing new: who waits to try again gives up, and requests on their way are answered."""
        self._stopped.set()

    def close(self) -> None:
        """Close all connections."""
        self.stop()
        self._client.close()

    def ask(self, messages: Messages, key: str = "") -> Reply:
        """Return the model's answer.

        Args:
            key: sent as the idempotency key, so that a server that knows it computes a retried request once.

        Raises:
            UserError: the endpoint refuses (address, key, model, request).
            NoAnswer: it did not answer however often it was asked.
        """
        for attempt in range(self.address.retries + 1):
            self._pace.wait()
            if self._stopped.is_set():
                raise NoAnswer("Asking was stopped.")
            try:
                return self._send(messages, key)
            except _Fault as fault:
                last = fault
            if attempt < self.address.retries:
                self._rest(attempt, last.wait)
        tries = self.address.retries + 1
        raise NoAnswer(f"{self.url} did not answer in {tries} tries: {last}.")  # pyright: ignore[reportPossiblyUnboundVariable]

    def _rest(self, attempt: int, wanted: float | None) -> None:
        """Wait before a retry: what the server asked for, else twice as long each time, with a random share."""
        self.retried += 1
        if wanted is not None:
            self._pace.pause(min(wanted, LONGEST_WAIT))
            return
        most = min(self.address.backoff * 2**attempt, 60.0)
        self.clock.sleep(most * (0.5 + 0.5 * self._draw.random()))

    def _send(self, messages: Messages, key: str) -> Reply:
        import httpx

        body = {
            "model": self.address.model,
            "messages": list(messages),
            self._limit_name: self.address.max_tokens,
        }
        if self._sends_temperature:
            body["temperature"] = self.address.temperature
        headers = {"Idempotency-Key": key} if key else {}
        try:
            with self._client.stream("POST", self.url, json=body, headers=headers) as response:
                content = _bounded(response, self.clock.now() + self.address.timeout, self.clock)
        except httpx.TimeoutException as error:
            raise _Fault(f"no answer within {self.address.timeout:g} s") from error
        except httpx.TransportError as error:
            raise _Fault(self._clean(str(error)) or type(error).__name__) from error
        except httpx.InvalidURL as error:
            raise UserError(Problem(f"This is no address: {error}.", "endpoint")) from error
        if response.status_code != 200:
            raise self._refusal(response, content)
        return _reply(content)

    def _refusal(self, response: httpx.Response, content: bytes) -> Exception:
        """Return what a status other than 200 means: try again, or tell the user."""
        status = response.status_code
        said = self._clean(_said(content))
        if status in _AGAIN or status >= 500:
            return _Fault(f"status {status}{said}", retry_after(response.headers.get("Retry-After")))
        if response.is_redirect:
            target = self._clean(str(response.headers.get("Location", "")))[:200]
            what = f"{self.url} redirects to {target}. Redirects are not followed: the key would go along."
            return UserError(Problem(what, "endpoint", "name the address that answers itself"))
        if status in (400, 422) and self._adapts(said):
            return _Fault(f"status {status}{said}", 0.0)
        remedy = {
            401: f"put a valid key into the environment variable {self.address.api_key_env}",
            403: f"check the rights of the key in {self.address.api_key_env}",
            404: f"check the address and the model's name ({self.address.model})",
        }.get(status, "check the model's name and what it accepts")
        return UserError(Problem(f"{self.url} answers with status {status}{said}.", "endpoint", remedy))

    def _adapts(self, said: str) -> bool:
        """Change what newer models refuse, and say so: they name the longest answer otherwise, and fix the temperature."""
        if "max_completion_tokens" in said and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"
            self.notes.append("The model wants max_completion_tokens in place of max_tokens.")
            return True
        if "temperature" in said and self._sends_temperature:
            self._sends_temperature = False
            self.notes.append("The model takes no temperature of ours: its verdicts may vary.")
            return True
        return False

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def chat_url(url: str) -> tuple[str, bool]:
    """Return the address of an endpoint's chat completions, and whether it is on this machine.

    Raises:
        UserError: it is no http address, or holds a password.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        what = f'"{url}" is no address of an endpoint.'
        raise UserError(Problem(what, "endpoint", "write e.g. http://127.0.0.1:8000/v1 or https://HOST/v1"))
    if parts.username or parts.password:
        what = "The address of the endpoint holds a password."
        raise UserError(Problem(what, "endpoint", "put the key into an environment variable: --api-key-env NAME"))
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), _is_local(parts.hostname)


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


def _bounded(response: httpx.Response, deadline: float, clock: Clock) -> bytes:
    """Read a reply that may be neither too long nor drip for ever: httpx limits the time between two bytes only."""
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) > MAX_BYTES:
            raise _Fault(f"the reply is longer than {MAX_BYTES // 2**20} MiB")
        if clock.now() > deadline:
            raise _Fault("the reply did not end in time")
    return bytes(content)


def _reply(content: bytes) -> Reply:
    """Read a chat completion; a body that is none counts as a fault of the wire."""
    try:
        body = json.loads(content)
        text = body["choices"][0]["message"]["content"]
        usage = body.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _Fault(f"the reply is no chat completion ({type(error).__name__})") from error
    if not isinstance(text, str):
        if text is not None:
            raise _Fault("the reply holds no text")
        text = ""
    return Reply(text, *tokens)


def _said(content: bytes) -> str:
    """Return the beginning of what a server says of its refusal."""
    try:
        error = json.loads(content)["error"]
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        text = content[:300].decode("utf-8", "replace")
    text = " ".join(text.split())[:200]
    return f": {text}" if text else ""
