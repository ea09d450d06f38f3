"""Rollouts by a running vLLM server, which is spoken to over HTTP and never imported.

Before answers are asked for, the server is given the adapter as it stands: saved in PEFT's form where the server can
read it, loaded under a name of its own (POST /v1/load_lora_adapter), and the one before unloaded. Prompts go out as
token ids (POST /v1/completions), so that no second tokenizer has a say, and token ids come back. What the answers'
log-probabilities are, our own engine says: the server computes in other kernels and other precision, and numbers of two
engines make no ratio. How far the two are apart is measured all the same (`gap`): an adapter that a server ignores, or
another base, shows there and nowhere else.

Shape legend: N tokens of an answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.errors import Problem, UserError
from luthier.rewards.judging.wire import Clock, Fault, NoAnswer, Patience, Wire
from luthier.train.decoding import Answer
from luthier.train.generate import Sampling, askable, stop_tokens

if TYPE_CHECKING:
    from luthier.train.engine import Engine

PLACE = "objective.vllm"
KEY = "VLLM_API_KEY"
"""The environment variable that holds the server's key, if it was started with one."""
PATIENCE = Patience(KEY, timeout=900.0, retries=6, max_bytes=2**28, place=PLACE)
AT_ONCE = 64
"""Prompts under way at the same time; the server batches them as it can."""
START = (
    "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK, "
    "on a machine that sees this run's folder under the same path"
)


class _Has(Exception):
    """The server already is as it was asked to be."""


class _Lost(UserError):
    """The server does not know the adapter that it was given."""


class VllmServer:
    """Writes answers in place of our own engine.

    Args:
        url: the server's address, such as http://127.0.0.1:8000/v1.
        folder: where adapters lie for the server to read; it is this object's own.
        clock: time, so that tests need none.

    Attributes:
        model: the name of the base that is served.
        context: the longest sequence that the server takes, in tokens; None where it does not say.

    Raises:
        UserError: there is no such server, or it serves no model.
    """

    def __init__(self, url: str, folder: Path, clock: Clock | None = None) -> None:
        self.url = url
        self._wire = Wire(url, PATIENCE, clock)
        self._folder = folder.resolve()
        self._prefix = f"luthier-{hashlib.sha256(str(self._folder).encode()).hexdigest()[:8]}-"
        self._loaded = ""
        self.model, self.context = self._find_model()

    def __call__(
        self, engine: Engine, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling
    ) -> list[list[Answer]]:
        """Return `count` answers to each prompt, written by the model as it is in the engine now.

        Answers carry `claimed`, and neither log-probabilities nor entropies. A prompt that fills the context has empty
        answers, as everywhere.

        Raises:
            UserError: the server refuses, or its tokens are not the model's.
            NoAnswer: it did not answer however often it was asked.
        """
        try:
            return self._written(engine, prompts, count, sampling)
        except _Lost:
            self._loaded = ""  # the server was started anew
            return self._written(engine, prompts, count, sampling)

    def _written(
        self, engine: Engine, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling
    ) -> list[list[Answer]]:
        name, model = self._publish(engine), engine.model
        stops = stop_tokens(model)
        known = [limit for limit in (model.context_length, self.context) if limit is not None]

        def ask(index: int, prompt: Sequence[int]) -> list[Answer]:
            room = min([sampling.max_new_tokens, *(limit - len(prompt) for limit in known)])
            if room <= 0:
                nothing = np.zeros(0, dtype=np.int32)
                return [Answer(nothing, None, None, True)] * count
            body = _request(name, prompt, count, room, stops, sampling, index)
            read = _Reader(count, stops, model.vocabulary_rows)
            return self._wire.ask("/completions", lambda: body, read, _refused_answers)

        with ThreadPoolExecutor(min(AT_ONCE, max(1, len(prompts)))) as pool:
            waiting = [pool.submit(ask, index, prompt) for index, prompt in enumerate(askable(model, prompts))]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                for one in waiting:
                    one.cancel()
                raise

    def close(self) -> None:
        """Take the last adapter out of the server again; a server that is gone needs none taken out."""
        try:
            if self._loaded:
                self._unload(self._loaded)
        except (NoAnswer, UserError):
            pass
        finally:
            self._wire.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _find_model(self) -> tuple[str, int | None]:
        """Return the name and the context of the base that is served, and unload what a killed run left there."""

        def read(content: bytes) -> list[dict[str, object]]:
            try:
                return [dict(card) for card in json.loads(content)["data"]]
            except (ValueError, KeyError, TypeError) as error:
                raise Fault(f"the reply is no list of models ({type(error).__name__})") from error

        cards = self._wire.ask("/models", None, read)
        for card in cards:
            if str(card.get("id")).startswith(self._prefix):
                self._unload(str(card["id"]))
        base = next((card for card in cards if not card.get("parent")), None)
        if base is None:
            raise UserError(Problem("The server serves no model.", PLACE, START))
        longest = base.get("max_model_len")
        return str(base["id"]), longest if isinstance(longest, int) else None

    def _publish(self, engine: Engine) -> str:
        """Give the server the adapter as it is now, and return its name there; the same weights are not sent twice."""
        module = engine.model.module
        name = self._prefix + _digest(engine.method.state_dict(module))
        if name == self._loaded:
            return name
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        engine.method.save(module, folder, engine.model.name)
        body = {"lora_name": name, "lora_path": str(folder)}
        with contextlib.suppress(_Has):  # a first attempt may have arrived although its answer did not
            self._wire.ask("/load_lora_adapter", lambda: body, lambda content: None, _refused_adapter)
        if self._loaded:
            self._unload(self._loaded)
            shutil.rmtree(self._folder / self._loaded, ignore_errors=True)
        self._loaded = name
        return name

    def _unload(self, name: str) -> None:
        def refused(status: int, said: str) -> Exception | None:
            return _Has() if status in (400, 404) and "cannot be found" in said else None

        with contextlib.suppress(_Has):
            self._wire.ask("/unload_lora_adapter", lambda: {"lora_name": name}, lambda content: None, refused)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return what tells two sets of weights apart."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _refused_adapter(status: int, said: str) -> Exception | None:
    """Say why a server does not take an adapter, and what helps."""
    if "already been loaded" in said:
        return _Has()
    if "max_lora_rank" in said:
        return UserError(Problem(f"The adapter's rank is too high for the server{said}.", PLACE, START))
    if status == 404 and "adapter" in said.lower():
        what = f"The server does not find the adapter{said}."
        return UserError(Problem(what, PLACE, "run it where the run's folder has the same path"))
    if status in (404, 405):
        return UserError(Problem("The server takes no adapters while it runs.", PLACE, START))
    if status in (400, 422):
        return UserError(Problem(f"The server does not take the adapter{said}.", PLACE, START))
    return None


def _refused_answers(status: int, said: str) -> Exception | None:
    if status != 404:
        return None
    what = f"The server has lost the adapter of this run{said}."
    return _Lost(Problem(what, PLACE, "leave the server running, and go on with luthier resume"))


def _request(
    name: str, prompt: Sequence[int], count: int, room: int, stops: Sequence[int], sampling: Sampling, index: int
) -> dict[str, object]:
    """Return what is asked of /v1/completions.

    What is not named would be taken from the generation config that lies beside the model. Answer g of a prompt is
    drawn with the request's seed + g, so prompts stand `count` seeds apart, as the numbers of answers do in our engine.
    """
    return {
        "model": name,
        "prompt": list(prompt),
        "n": count,
        "max_tokens": room,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": (sampling.seed << 24) + index * count,
        "stop_token_ids": list(stops),
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


class _Reader:
    """Makes answers of a completion."""

    def __init__(self, count: int, stops: Sequence[int], rows: int) -> None:
        self.count, self.stops, self.rows = count, stops, rows

    def __call__(self, content: bytes) -> list[Answer]:
        """Return the answers in their order.

        Raises:
            Fault: the reply is no completion, or stops in the middle.
            UserError: the tokens are none of the model's, or are not told.
        """
        try:
            choices = sorted(json.loads(content)["choices"], key=lambda choice: choice["index"])
            read = [self._answer(choice) for choice in choices]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise Fault(f"the reply is no completion ({type(error).__name__})") from error
        if len(read) != self.count:
            raise Fault(f"{len(read)} answers came, and {self.count} were asked for")
        return read

    def _answer(self, choice: Mapping[str, object]) -> Answer:
        why, stopped_by = choice["finish_reason"], choice.get("stop_reason")
        if why not in ("stop", "length"):
            raise Fault(f"an answer was broken off ({why})")
        told = choice.get("logprobs")
        numbers: Mapping[str, list] = told if isinstance(told, Mapping) else {}
        tokens = choice.get("token_ids")
        if not isinstance(tokens, list):
            tokens = [_numbered(word) for word in numbers.get("tokens", [])]
        if why == "stop" and self.stops and not (tokens and tokens[-1] in self.stops):
            tokens = [*tokens, stopped_by if stopped_by in self.stops else self.stops[0]]
        if not all(isinstance(token, int) and 0 <= token < self.rows for token in tokens):
            what = "The server writes tokens that the model does not have."
            raise UserError(Problem(what, PLACE, "serve the model that the recipe trains"))
        claimed = np.full(len(tokens), np.nan, dtype=np.float32)
        said = numbers.get("token_logprobs") or []
        claimed[: len(said)] = [np.nan if number is None else number for number in said[: len(tokens)]]
        return Answer(np.array(tokens, dtype=np.int32), None, None, tokens[-1] not in self.stops, claimed)


def _numbered(word: object) -> int:
    """Return the id in "token_id:17".

    Raises:
        UserError: there is none, so the answer's tokens are not known.
    """
    number = str(word).removeprefix("token_id:")
    if not (str(word).startswith("token_id:") and number.isdigit()):
        what = "The server does not say which tokens it wrote."
        raise UserError(Problem(what, PLACE, "use vLLM's own server, of a version that knows return_token_ids"))
    return int(number)
