"""The recipes of an advice: the real one, staged where stages are right, a pilot of it, and what runs today.

A recipe here is plain values, as a person would have written them, and its head says why. Whether it is right is for
`luthier check` to say.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from luthier.advise.line import Step
from luthier.advise.needs import DEFAULT_MAX_LENGTH, epochs_for, sequence_length
from luthier.advise.notes import held_share
from luthier.advise.settings import method_settings
from luthier.advise.situation import Situation

Values = dict[str, object]
_PILOT_STEPS = 20
_PILOT_ROWS = 1000
_TINY = 50_000_000
"""Models below this many parameters, toys and tests, take far higher rates than the methods' defaults."""
_TINY_RATES = {"full": 5e-4, "layers": 1e-3, "ulmfit": 2e-3}
_TINY_LOW_RANK = 2e-3
_LOW_RANK = ("lora", "lora_plus", "qlora", "adalora")
_ANSWER_TOKENS = 256
_TASKS_TEMPERATURE = 2.0
"""T5's (Raffel et al. 2019, arXiv:1910.10683, section 3.5.2)."""
_LANGUAGES_TEMPERATURE = 3.3
"""XLM-R's exponent of 0.3 (Conneau et al. 2019, arXiv:1911.02116)."""
_FORGETTING = ("sft", "dpo", "kto")


@dataclass(frozen=True)
class Written:
    """A recipe.

    Attributes:
        name: of its file.
        why: what it is for (English, Chinese).
    """

    name: str
    values: Values
    why: tuple[str, str]


def recipes(s: Situation, method: str, steps: tuple[Step, ...], folder: Path | None = None) -> tuple[Written, ...]:
    """Return the real recipe and its pilot; none where no stage can run yet.

    Args:
        folder: where they will lie; paths of data are written from there.
    """
    ready = tuple(step for step in steps if step.missing is None)
    if not ready:
        return ()
    real = _values(s, method, ready, folder)
    return (
        Written(
            "pilot.yaml",
            _pilot(real, ready),
            ("the pilot: look at its losses and samples first", "试跑：先看损失和样例"),
        ),
        Written("recipe.yaml", real, ("the real run", "正式训练")),
    )


def today(s: Situation, method: str, steps: tuple[Step, ...], folder: Path | None = None) -> tuple[Written, ...]:
    """Return the recipe of the best method that one device holds, where the first choice needs several."""
    ready = tuple(step for step in steps if step.missing is None)
    why = ("what runs on one device today", "目前在单设备上能跑的方案")
    return (Written("today.yaml", _values(s, method, ready, folder), why),) if ready else ()


def text_of(values: Mapping[str, object], head: tuple[str, ...]) -> str:
    """Return a recipe as YAML with a head of comments."""
    comments = [line for paragraph in head for line in textwrap.wrap(paragraph, 116) or [""]]
    body = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return "".join(f"# {line}".rstrip() + "\n" for line in comments) + "\n" + body


def _values(s: Situation, method: str, steps: tuple[Step, ...], folder: Path | None) -> Values:
    common: Values = {"model": _model(s, steps), "method": _method(s, method)}
    stages = [_stage(s, method, step, folder, len(steps)) for step in steps]
    tail: Values = {"gradient_checkpointing": True} if s.needs[method].checkpointing else {}
    if s.wants("production"):
        tail["run"] = f"runs/{_short(s.model.name)}-v1"
    if len(stages) == 1:
        return {**common, **stages[0], **tail}
    for index, stage in enumerate(stages[1:], start=1):
        if steps[index].objective not in ("classify", "regress") and method not in ("full", "layers"):
            stage["adapter"] = "continue"  # the same adapter goes on: one file in the end, and DPO's reference for free
    return {**common, **tail, "stages": stages}


def _model(s: Situation, steps: tuple[Step, ...]) -> object:
    is_chat = any(data.is_chat for step in steps if step.objective != "lm" for data in step.data)
    if is_chat and not s.model.has_template and not s.model.is_encoder:
        return {"path": s.model.name, "chat_template": "chatml"}
    return s.model.name


def _method(s: Situation, kind: str) -> object:
    settings = method_settings(s, kind)
    return {"kind": kind, **settings} if settings else kind


def _stage(s: Situation, method: str, step: Step, folder: Path | None, stages: int) -> Values:
    rows = sum(data.rows for data in step.data)
    objective: object = step.objective
    if step.objective == "grpo":
        objective = _grpo(s)
    values: Values = {"objective": objective, "data": _data(step, folder)}
    if len(step.data) > 1:
        values["mix"] = {"temperature": _LANGUAGES_TEMPERATURE if s.wants("languages") else _TASKS_TEMPERATURE}
    if rows > 1 and step.objective != "grpo":
        values["eval_fraction"] = held_share(rows)
    values |= _length(s, method, step)
    values |= _duration(s, method, step, rows, stages)
    values["batch_size"] = 8 if rows < 200 or step.objective in ("dpo", "kto", "grpo") else 16
    general = _general(s, folder)
    if general is not None and step.objective in _FORGETTING:
        action = "rollback" if method in ("full", "layers") else "warn"
        values["forgetting"] = {"data": [general], "action": action}
    rate = _rate(s, method, step.objective)
    if rate is not None:
        values["learning_rate"] = rate
    return values


def _grpo(s: Situation) -> Values:
    longest = (s.model.context or 1024) // 4
    reward = s.wishes.reward or "exact_match"
    return {
        "kind": "grpo",
        "reward": reward,
        "num_generations": 8,
        "max_new_tokens": max(8, min(_ANSWER_TOKENS, longest)),
    }


def _general(s: Situation, folder: Path | None) -> str | None:
    """Return the rows that are not to be forgotten: as they were told, or those that the starter brings."""
    if s.wishes.general is not None:
        return _path(s.wishes.general, folder)
    return (
        "starter:stories"
        if s.model.name == "starter" and not any(d.path == "starter:stories" for d in s.data)
        else None
    )


def _data(step: Step, folder: Path | None) -> object:
    if step.on_chosen:
        first = step.data[0]
        columns = {"prompt": first.prompt_column, "answer": first.chosen_column}
        return {"path": _path(first.path, folder), "columns": columns}
    paths = [_path(data.path, folder) for data in step.data]
    return paths[0] if len(paths) == 1 else [{"path": path} for path in paths]


def _path(path: str, folder: Path | None) -> str:
    """Return a path from the folder of the recipe: paths are looked up there first."""
    if path.startswith("starter:") or folder is None or Path(path).is_absolute():
        return path
    return os.path.relpath(path, folder)


def _length(s: Situation, method: str, step: Step) -> Values:
    length = sequence_length(s)
    reserved = 20 if method in ("prefix", "p_tuning_v2", "prompt", "p_tuning") else 0
    if s.model.context is not None:
        length = min(length, s.model.context - reserved)
    values: Values = {"max_length": length}
    longest = max(data.longest_tokens for data in step.data)
    # Lengths are estimates: a row a little longer than they say is left out and counted, and ends no run.
    if step.objective not in ("lm", "grpo") and (longest * 1.5 > length or length < DEFAULT_MAX_LENGTH):
        values["on_overlong"] = "drop"
    return values


def _duration(s: Situation, method: str, step: Step, rows: int, stages: int) -> Values:
    hours = s.needs[method].hours
    epochs: float = 1 if step.objective in ("dpo", "kto", "grpo") else epochs_for(s)
    if s.wishes.hours is not None and hours > s.wishes.hours:
        return {"max_steps": f"{math.floor(s.wishes.hours * 3600 / stages)} seconds"}
    values: Values = {"epochs": epochs}
    if epochs > 1 and rows >= 50:
        values["early_stopping"] = 2
    return values


def _rate(s: Situation, method: str, objective: str) -> float | None:
    """Return a learning rate where the method's default is not for models this small."""
    if s.model.parameters >= _TINY:
        return None
    rate = _TINY_LOW_RANK if method in _LOW_RANK else _TINY_RATES.get(method)
    if rate is None:
        return None
    return rate / 2 if objective in ("dpo", "kto") else rate


def _pilot(real: Values, steps: tuple[Step, ...]) -> Values:
    """Return the same recipe for some steps on some of the rows; labels may be sorted, so classes see them all."""
    pilot: Values = {key: value for key, value in real.items() if key not in ("epochs", "early_stopping", "run")}
    if "stages" in real:
        stages = real["stages"]
        assert isinstance(stages, list)
        pilot["stages"] = [_pilot(stage, (step,)) for stage, step in zip(stages, steps)]
        return pilot
    rows = sum(data.rows for data in steps[0].data)
    if rows > _PILOT_ROWS and steps[0].objective not in ("classify", "regress"):
        data = pilot["data"]
        sets = data if isinstance(data, list) else [data if isinstance(data, dict) else {"path": data}]
        limited = [{**part, "limit": _PILOT_ROWS} for part in sets]
        pilot["data"] = limited if isinstance(data, list) else limited[0]
    if "eval_fraction" in pilot:
        pilot["eval_fraction"] = 0.1
    pilot["max_steps"] = _PILOT_STEPS if steps[0].objective != "grpo" else _PILOT_STEPS // 4
    return pilot


def _short(name: str) -> str:
    return Path(name).name or "model"
