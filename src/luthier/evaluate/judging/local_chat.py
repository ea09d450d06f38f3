"""A local model that is spoken to as an endpoint is: messages in, text out, the likeliest word each time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from luthier.data.prompts import render_prompt
from luthier.data.records import Conversation, Message, PromptAnswer
from luthier.rewards.judging.endpoint import Messages, NoAnswer, Reply
from luthier.train.generate import Sampling, generate

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel

_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}


class LocalChat:
    """Answers messages with a model in memory, one question at a time.

    A model without a chat template sees the messages one below another.
    """

    def __init__(self, model: LoadedModel, max_tokens: int) -> None:
        self.model, self.max_tokens = model, max_tokens
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def ask(self, messages: Messages, key: str = "") -> Reply:
        """Return the answer.

        Raises:
            NoAnswer: asking was stopped.
        """
        turns = tuple(Message(_ROLES[m["role"]], m["content"]) for m in messages)  # type: ignore[arg-type]
        record = Conversation(turns, "judge")
        tokenizer = self.model.tokenizer
        if not tokenizer.chat_template:
            text = "\n\n".join(m["content"] for m in messages) + "\n\n"
            record = PromptAnswer(text, "", "", "", (), False, "judge")
        with self._lock:
            if self._stopped.is_set():
                raise NoAnswer("Asking was stopped.")
            prompt = render_prompt(tokenizer, record)
            (answer,) = generate(self.model, [prompt], Sampling(self.max_tokens))
        return Reply(str(tokenizer.decode(answer, skip_special_tokens=True)), len(prompt), len(answer))

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopped.set()

    def close(self) -> None:
        """Let go of the model."""
        self.stop()
