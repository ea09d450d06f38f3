"""A chat endpoint of OpenAI's form: a conversation goes out, the model's answer comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.core.errors import Problem, UserError
from luthier.rewards.judging.wire import Clock, Fault, NoAnswer, Patience, Wire, retry_after, server_url

MAX_BYTES = 4 * 2**20
"""The longest reply that is read."""
CHAT = "/chat/completions"

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

    @property
    def patience(self) -> Patience:
        """How its server is asked."""
        return Patience(self.api_key_env, self.timeout, self.retries, self.per_minute, self.backoff, MAX_BYTES)


class Endpoint:
    """An open connection to a chat endpoint; many threads may ask at once.

    Raises:
        UserError: the address is none, or a key would travel in the clear.
    """

    def __init__(self, address: Address, clock: Clock | None = None, seed: int = 0) -> None:
        self.address = address
        self.url, _ = chat_url(address.url)
        self._wire = Wire(address.url, address.patience, clock, seed)
        self._limit_name = "max_tokens"
        self._sends_temperature = True
        self.notes: list[str] = []

    @property
    def retried(self) -> int:
        """How often a request was sent again."""
        return self._wire.retried

    def stop(self) -> None:
        """Begin nothing new: who waits to try again gives up, and requests on their way are answered."""
        self._wire.stop()

    def close(self) -> None:
        """Close all connections."""
        self._wire.close()

    def ask(self, messages: Messages, key: str = "") -> Reply:
        """Return the model's answer.

        Args:
            key: sent as the idempotency key, so that a server that knows it computes a retried request once.

        Raises:
            UserError: the endpoint refuses (address, key, model, request).
            NoAnswer: it did not answer however often it was asked.
        """
        headers = {"Idempotency-Key": key} if key else {}
        return self._wire.ask(CHAT, lambda: self._body(messages), _reply, self._refused, headers)

    def _body(self, messages: Messages) -> dict[str, object]:
        body = {
            "model": self.address.model,
            "messages": list(messages),
            self._limit_name: self.address.max_tokens,
        }
        if self._sends_temperature:
            body["temperature"] = self.address.temperature
        return body

    def _refused(self, status: int, said: str) -> Exception | None:
        """Say what a refusal means that has to do with the model."""
        if status in (400, 422) and self._adapts(said):
            return Fault(f"status {status}{said}", 0.0)
        if status == 404:
            remedy = f"check the address and the model's name ({self.address.model})"
            return UserError(Problem(f"{self.url} answers with status {status}{said}.", "endpoint", remedy))
        return None

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


def chat_url(url: str) -> tuple[str, bool]:
    """Return the address of an endpoint's chat completions, and whether it is on this machine.

    Raises:
        UserError: it is no http address, or holds a password.
    """
    return server_url(url, CHAT)


def _reply(content: bytes) -> Reply:
    """Read a chat completion; a body that is none counts as a fault of the wire."""
    try:
        body = json.loads(content)
        text = body["choices"][0]["message"]["content"]
        usage = body.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise Fault(f"the reply is no chat completion ({type(error).__name__})") from error
    if not isinstance(text, str):
        if text is not None:
            raise Fault("the reply holds no text")
        text = ""
    return Reply(text, *tokens)


__all__ = ["Address", "Clock", "Endpoint", "Messages", "NoAnswer", "Reply", "chat_url", "retry_after"]
