"""`luthier chat RUN_OR_MODEL`: talk with what was trained, through the same template as in training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from luthier.cli.messages import stdout
from luthier.core.errors import Problem, UserError, visible
from luthier.data.records import Conversation, Labelled, Message, PromptAnswer
from luthier.run.opened import open_target, target_labels

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.models.loaded import LoadedModel


def run(target: str, system: str | None = None, temperature: float = 0.7, max_new_tokens: int = 256) -> None:
    """Read questions from the terminal (or from stdin, one a line) and print answers; /reset forgets, /exit leaves."""
    labels = target_labels(target)
    if labels is not None and list(labels) == ["reward"]:
        what = "This is a reward model: it scores answers, and writes none."
        remedy = f"measure it: luthier eval {target} --data FILE; let it judge: luthier judge FILE --judge {target}"
        raise UserError(Problem(what, target, f"{remedy} --out FILE"))
    model, _ = open_target(target)
    console = stdout()
    interactive = sys.stdin.isatty()
    if labels is not None:
        _classify(model, console, interactive)
        return
    if interactive:
        console.print(f"{target}: /reset forgets the conversation, /exit leaves", style="bold")
    head = [Message("system", system)] if system else []
    turns: list[Message] = []
    for question in _questions(interactive):
        if question == "/exit":
            break
        if question == "/reset":
            turns = []
            continue
        turns.append(Message("user", question))
        answer = _answer(model, head, turns, temperature, max_new_tokens)
        console.print(visible(answer))
        turns.append(Message("assistant", answer))


def _classify(model: LoadedModel, console: Console, interactive: bool) -> None:
    """Say the class of each line: a classifier has no answers to give."""
    from luthier.evaluate.classes import predict_texts
    from luthier.evaluate.numbers import rate_texts

    names = {int(k): str(v) for k, v in (model.module.config.id2label or {}).items()}
    if interactive:
        console.print(f"a classifier ({', '.join(names.values())}): type a text, /exit leaves", style="bold")
    for line in _questions(interactive):
        if line == "/exit":
            break
        asked = [Labelled(line, "", "", "chat")]
        if len(names) == 1:
            console.print(rate_texts(model, asked)[0])
            continue
        predicted = predict_texts(model, asked)
        console.print(visible(predicted.named([names[i] for i in sorted(names)])[0]))


def _answer(
    model: LoadedModel, head: list[Message], turns: list[Message], temperature: float, max_new_tokens: int
) -> str:
    """Return the model's answer; when the conversation no longer fits, its oldest turns are taken out of `turns`."""
    from luthier.train.generate import Sampling, generate

    limit = model.context_length
    prompt = _prompt(model, head, turns)
    while limit is not None and len(prompt) >= limit:
        if len(turns) < 3:
            what = f"The question has {len(prompt):,} tokens; the model was built for {limit:,}."
            raise UserError(Problem(what, "chat", "ask something shorter"))
        del turns[:2]
        prompt = _prompt(model, head, turns)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=len(turns))
    [tokens] = generate(model, [prompt], sampling)
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True))


def _prompt(model: LoadedModel, head: list[Message], turns: list[Message]) -> list[int]:
    from luthier.data.render import render_prompt

    if model.tokenizer.chat_template:
        return render_prompt(model.tokenizer, Conversation((*head, *turns), "chat"))
    # A model without a template was trained on plain prompts; it has no notion of turns.
    system = head[0].content if head else ""
    return render_prompt(model.tokenizer, PromptAnswer(turns[-1].content, "", "", system, (), False, "chat"))


def _questions(interactive: bool) -> Iterator[str]:
    """Yield what is typed, until end of file."""
    while True:
        try:
            line = input("› " if interactive else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()
