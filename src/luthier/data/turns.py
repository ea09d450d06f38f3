"""Read the turns of one conversation: OpenAI messages and ShareGPT, with every fault named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from luthier.core.errors import did_you_mean
from luthier.data.problems import ProblemLog
from luthier.data.records import Conversation, Message, Role

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
}
TOOL_ROLES = ("function_call", "function", "tool_call", "tool_calls")
TOOL_REMEDY = "remove the row; calls of tools cannot be trained on yet"
WEIGHT_KEYS = ("train", "weight", "loss_weight")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
KNOWN_KEYS = {"role", "from", "content", "value", "tool_calls", *WEIGHT_KEYS, *THOUGHT_KEYS}


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = ((str, "a string"), ((int, float), "a number"), ((list, tuple), "a list"), (dict, "an object"))
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def shown(value: object) -> str:
    """Return a value short enough for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def is_sharegpt(columns: Iterable[object]) -> bool:
    """Say whether the first conversation with turns is written with from/value."""
    for turns in columns:
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return "from" in turns[0]
    return False


def history(value: object, source: str, log: ProblemLog) -> tuple[tuple[str, str], ...] | None:
    """Return Alpaca's `history`, a list of [prompt, answer]; None after logging."""
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, list):
        pairs = [tuple(p) for p in value if isinstance(p, list | tuple) and len(p) == 2]
        if len(pairs) == len(value) and all(isinstance(text, str) for pair in pairs for text in pair):
            return tuple((str(prompt), str(answer)) for prompt, answer in pairs)
    what = f'"history" should be a list of [prompt, answer], got {shown(value)}.'
    log.add("history", what, source, "mend or remove the row")
    return None


def read(
    turns: Sequence[object], system: str, source: str, log: ProblemLog, column: str, needs_answer: bool
) -> Conversation | None:
    """Return the conversation, or None after logging all that is wrong with it."""
    before = log.total
    if not turns:
        log.add("empty conversation", f'"{column}" is an empty list.', source, "add messages or remove the row")
        return None
    messages = [_message(turn, f'"{column}"[{i}]', source, log) for i, turn in enumerate(turns)]
    if log.total > before:
        return None
    found = [m for m in messages if m is not None]
    if system.strip():
        if found[0].role == "system":
            log.add(
                "two system prompts",
                'The row has a system message and a column "system".',
                source,
                "keep one of the two",
            )
            return None
        found.insert(0, Message("system", system))
    if needs_answer and found[-1].role != "assistant":
        what = f'"{column}" ends with role "{found[-1].role}", so nothing would be trained on after it.'
        log.add("last role", what, source, "add the assistant's reply, or remove that last message or the row")
        return None
    return Conversation(tuple(found), source)


def _message(turn: object, place: str, source: str, log: ProblemLog) -> Message | None:
    if not isinstance(turn, dict):
        what = f"{place} should be an object with role and content, got {kind_of(turn)}: {shown(turn)}."
        log.add("message", what, source, 'write {"role": "user", "content": "…"}')
        return None
    role = _role(turn, place, source, log)
    if role is None:
        return None
    content, reasoning = _content(turn, place, source, log)
    if content is None:
        return None
    if role == "assistant" and not (content.strip() or reasoning.strip()):
        log.add(
            "empty answer", f"{place} is an assistant message without text.", source, "fill it in or remove the row"
        )
        return None
    if role == "user" and not content.strip():
        log.warn("empty user message", f"{place} is a user message without text.", source)
    for key in turn.keys() - KNOWN_KEYS:
        if turn[key] is not None:
            log.warn(f"message key {key}", f'the key "{key}" of {place} is not used.', source)
    return Message(role, content, _weight(turn, place, source, log), reasoning)


def _role(turn: Mapping[str, object], place: str, source: str, log: ProblemLog) -> Role | None:
    key = "role" if "role" in turn else "from"
    name = turn.get(key)
    if name in TOOL_ROLES or turn.get("tool_calls"):
        what = f'{place} is a call of a tool ({key} "{name}").'
        log.add("tool call", what, source, TOOL_REMEDY)
        return None
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        got = f"has no role (keys: {', '.join(turn)})" if name is None else f"has the unknown role {shown(name)}"
        near = did_you_mean(name, ROLES) if isinstance(name, str) else ""
        log.add("role", f"{place} {got}.{near}", source, f"choose one of: {', '.join(ROLES)}")
    return role


def _content(turn: Mapping[str, object], place: str, source: str, log: ProblemLog) -> tuple[str | None, str]:
    """Return (text, reasoning); text is None after logging."""
    key = "content" if "content" in turn else "value"
    value = turn.get(key)
    thought = next((t for k in THOUGHT_KEYS if isinstance(t := turn.get(k), str)), "")
    if isinstance(value, str):
        return value, thought
    if not isinstance(value, list):
        state = (
            f'has no "{key}" (keys: {", ".join(turn)})' if key not in turn else f'has "{key}" that is {kind_of(value)}'
        )
        log.add(
            "content", f"{place} {state}; expected a string.", source, "write the text as a string, or remove the row"
        )
        return None, ""
    texts, thoughts = [], [thought] if thought else []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = (part.get("text", part.get("value"))) if isinstance(part, dict) else part
        if kind in ("tool_call", "tool_calls", "tool_use"):
            log.add("tool call", f"{place} is a call of a tool.", source, TOOL_REMEDY)
            return None, ""
        if kind not in ("text", "reasoning", "thinking") or not isinstance(text, str):
            what = f"{place} holds a part that is not text: {shown(part)}."
            log.add("content part", what, source, "only text can be trained on; remove the part or the row")
            return None, ""
        (texts if kind == "text" else thoughts).append(text)
    return "".join(texts), "".join(thoughts)


def _weight(turn: Mapping[str, object], place: str, source: str, log: ProblemLog) -> float | None:
    given = {k: turn[k] for k in WEIGHT_KEYS if turn.get(k) is not None}
    weights = set()
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or not math.isfinite(value) or value < 0:
            expected = "true or false" if key == "train" else "a number of 0 or more"
            log.add(
                "weight",
                f'{place} has "{key}": {shown(value)}; expected {expected}.',
                source,
                "mend it or leave it out",
            )
            return None
        weights.add(float(value))
    if len(weights) > 1:
        listed = ", ".join(f"{k} = {v}" for k, v in given.items())
        log.add("weight", f"{place} has weights that disagree: {listed}.", source, "keep one of them")
        return None
    return weights.pop() if weights else None
