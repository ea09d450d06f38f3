"""A loaded model as lm-evaluation-harness asks models: the same object that trains, so that any of its tasks can be
measured during a run without a server or a second copy.

Biderman et al. 2024, arXiv:2405.14782. The harness splits texts into tokens itself (`TemplateLM`); only the questions
of likelihood and of generation are answered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from lm_eval.api.model import TemplateLM

from luthier.evaluate.likelihood import DEFAULT_LENGTH, Query, likelihoods
from luthier.train.generate import Sampling, generate

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from luthier.models.loaded import LoadedModel
    from luthier.train.microbatch import Cut


class HarnessModel(TemplateLM):
    """Answers the harness's requests.

    Args:
        cut: limits of one forward pass.
        max_length: the longest sequence; what is longer loses tokens at its beginning, as in the harness.
    """

    def __init__(self, model: LoadedModel, cut: Cut | None = None, max_length: int | None = None) -> None:
        super().__init__()
        self.model, self.cut = model, cut
        self.tokenizer = model.tokenizer
        self.max_length = max_length or min(model.context_length or DEFAULT_LENGTH, DEFAULT_LENGTH)
        self._device = model.device

    @property
    def eot_token_id(self) -> int:
        found = self.tokenizer.eos_token_id
        return found if isinstance(found, int) else 0

    @property
    def prefix_token_id(self) -> int:
        found = self.tokenizer.bos_token_id
        return found if isinstance(found, int) else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.model.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.tokenizer.get_chat_template() if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        assert isinstance(text, str)
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        begins = isinstance(self.tokenizer.bos_token, str) and string.startswith(self.tokenizer.bos_token)
        special = add_special_tokens if add_special_tokens is not None else not begins
        return list(self.tokenizer.encode(string, add_special_tokens=special))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        queries = [Query(np.array(c, np.int32), (np.array(e, np.int32),)) for _, c, e in requests]
        found = likelihoods(self.model, queries, self.cut, self.max_length, greedy=True)
        return [(row[0].logp, row[0].is_likeliest) for row in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        queries, counts = [], []
        for request in requests:
            ids = self.tok_encode(str(request.arguments[0]))
            # A sequence holds the windows' context and prediction, so windows are one token shorter.
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
            parts = [make_disjoint_window(window) for window in windows]
            queries += [Query(np.array(c, np.int32), (np.array(e, np.int32),)) for c, e in parts]
            counts.append(len(parts))
        found = iter(likelihoods(self.model, queries, self.cut, self.max_length))
        return [sum(next(found)[0].logp for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = [""] * len(requests)
        groups: dict[tuple[int, float, float], list[int]] = {}
        for number, request in enumerate(requests):
            wanted = _wishes(request)
            temperature = float(wanted.get("temperature") or 0.0) if wanted.get("do_sample", True) else 0.0
            key = (int(wanted.get("max_gen_toks", 256)), temperature, float(wanted.get("top_p", 1.0)))
            groups.setdefault(key, []).append(number)
        for (room, temperature, top_p), numbers in groups.items():
            prompts = [self.tok_encode(str(requests[n].arguments[0]))[-(self.max_length - room) :] for n in numbers]
            made = generate(self.model, prompts, Sampling(room, temperature, top_p))
            for number, tokens in zip(numbers, made):
                answers[number] = _cut(str(self.tokenizer.decode(tokens)), _wishes(requests[number]).get("until"))
        return answers


def _wishes(request: Instance) -> dict:
    """Return how a request wants its text to be generated."""
    return dict(request.arguments[1])  # type: ignore[index,arg-type]


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.partition(stop)[0] if stop else text
    return text
