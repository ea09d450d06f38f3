"""`luthier chat RUN_OR_MODEL`: talk with what was trained, through the same template as in training."""

from __future__ import annotations

import sys

from rich.console import Console

from luthier.cli.eval import _open
from luthier.data.records import Conversation, Message, PromptAnswer


def run(target: str, system: str | None = None, temperature: float = 0.7, max_new_tokens: int = 256) -> None:
    """Read questions from the terminal (or from stdin, one a line) and print answers; /reset forgets, /exit leaves."""
    model, _ = _open(target)

    from luthier.data.render import render_prompt
    from luthier.train.generate import Sampling, generate

    console = Console(highlight=False)
    interactive = sys.stdin.isatty()
    if interactive:
        console.print(f"[bold]{target}[/]  /reset forgets the conversation, /exit leaves", markup=True)
    has_template = bool(model.tokenizer.chat_template)
    turns: list[Message] = []
    for question in _questions(interactive):
        if question == "/exit":
            break
        if question == "/reset":
            turns = []
            continue
        turns.append(Message("user", question))
        head = [Message("system", system)] if system else []
        if has_template:
            asked = Conversation((*head, *turns), "chat")
        else:  # a model without a template was trained on plain prompts; it has no notion of turns
            asked = PromptAnswer(question, "", "", system or "", (), False, "chat")
        prompt = list(render_prompt(model.tokenizer, asked))
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=len(turns))
        [tokens] = generate(model, [prompt], sampling)
        text = model.tokenizer.decode(tokens, skip_special_tokens=True)
        console.print(text, markup=False)
        turns.append(Message("assistant", text))


def _questions(interactive: bool):
    """Yield what is typed, until end of file."""
    while True:
        try:
            line = input("› " if interactive else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()
