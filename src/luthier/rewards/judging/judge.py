"""A judge: questions in, verdicts out. Each answer is kept before it counts; what cannot be read is asked again.

Rules: a verdict that is no JSON of the wanted form is asked for again in the same conversation, a few times, and is
undecided then. A question that the endpoint does not answer is left open, and is asked in the next run; when several in
a row are not answered, asking ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from luthier.rewards.judging.endpoint import Messages, NoAnswer, Reply
from luthier.rewards.judging.journal import Journal, content_key
from luthier.rewards.judging.questions import language_of, mended

Verdict = TypeVar("Verdict", covariant=True)
Item = TypeVar("Item")
Result = TypeVar("Result")
GIVE_UP_AFTER = 3
"""Questions in a row that are not answered, before asking ends."""


class Question(Protocol[Verdict]):
    """What can be asked: messages, and how their answer is read."""

    def messages(self) -> list[dict[str, str]]: ...

    def read(self, text: str) -> Verdict | None: ...


class Chat(Protocol):
    """A model that answers messages."""

    def ask(self, messages: Messages, key: str = "") -> Reply: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Tally:
    """What asking has come to.

    Attributes:
        asked: requests that were answered now.
        known: answers that were there already.
        again: answers that could not be read.
        tokens_in, tokens_out: of all answers that were used, each counted once, from the journal or new.
        new_in, new_out: of those that were paid for now.
    """

    asked: int = 0
    known: int = 0
    again: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    new_in: int = 0
    new_out: int = 0
    seen: set[str] = field(default_factory=set, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, key: str, reply: Reply, is_new: bool) -> None:
        with self.lock:
            self.asked += is_new
            if key in self.seen:
                return
            self.seen.add(key)
            self.known += not is_new
            self.tokens_in += reply.tokens_in
            self.tokens_out += reply.tokens_out
            self.new_in += reply.tokens_in * is_new
            self.new_out += reply.tokens_out * is_new


class Judge:
    """A model that is asked for verdicts, with a memory.

    Args:
        chat: what answers.
        model, temperature: part of a question's key.
        attempts: how often a verdict is asked for that cannot be read.
    """

    def __init__(self, chat: Chat, model: str, temperature: float, journal: Journal, attempts: int = 3) -> None:
        self.chat, self.model, self.temperature = chat, model, temperature
        self.journal, self.attempts = journal, attempts
        self.tally = Tally()

    def verdict(self, question: Question[Verdict]) -> Verdict | None:
        """Return the verdict; None where none of the answers could be read.

        Raises:
            UserError, NoAnswer: see `Endpoint.ask`.
        """
        messages = question.messages()
        for _ in range(self.attempts):
            reply = self._answer(messages)
            verdict = question.read(reply.text)
            if verdict is not None:
                return verdict
            with self.tally.lock:
                self.tally.again += 1
            messages = mended(messages, reply.text, language_of(messages[0]["content"]))
        return None

    def close(self) -> None:
        """Close the connection, then the journal."""
        self.chat.close()
        self.journal.close()

    def _answer(self, messages: Messages) -> Reply:
        key = content_key(self.model, self.temperature, messages)
        reply, is_new = self.journal.once(key, lambda: self.chat.ask(messages, key))
        self.tally.add(key, reply, is_new)
        return reply


@dataclass(frozen=True)
class Done(Generic[Result]):
    """One item's result, or why it is left open."""

    index: int
    result: Result | None = None
    fault: NoAnswer | None = None


def each(
    items: Sequence[Item], work: Callable[[Item], Result], workers: int, stop: Callable[[], None]
) -> Generator[Done[Result], None, None]:
    """Yield what `work` makes of every item as it comes, several at once.

    Whatever ends the iteration early (Ctrl-C, an error, a reader that stops), answers that are on their way are waited
    for, because they are paid for; nothing new is begun.

    Args:
        stop: called when it ends early, so that nothing is begun any more.

    Raises:
        NoAnswer: several items in a row were not answered.
    """
    waiting = iter(enumerate(items))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="judge")
    running: dict[Future[Result], int] = {}
    silent = 0
    try:
        while True:
            while len(running) < workers and (following := next(waiting, None)) is not None:
                running[pool.submit(work, following[1])] = following[0]
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                try:
                    done: Done[Result] = Done(index, future.result())
                    silent = 0
                except NoAnswer as fault:
                    done, silent = Done(index, fault=fault), silent + 1
                    if silent >= GIVE_UP_AFTER:
                        raise
                yield done
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
