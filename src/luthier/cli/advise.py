"""`luthier advise`: which method, in which stages, for this model, these data and this machine, and why not another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.advise import machine as machines
from luthier.advise.advice import advise, as_dict, write
from luthier.advise.data_profile import profile_data
from luthier.advise.model_profile import profile_model
from luthier.advise.situation import DataProfile, Form, Machine, Purpose, Quality, Situation, Wishes
from luthier.cli.advise_page import show
from luthier.cli.advise_questions import Told, ask, may_ask, purposes_of
from luthier.cli.messages import print_json
from luthier.core.errors import DataError, LuthierError, Problem, UserError
from luthier.core.language import Language, language_of
from luthier.core.rundir import disk_fault

ASSUMED_ROWS = 1000
_PURPOSE_OF: dict[Form, Purpose] = {
    "labelled": "classification",
    "scored": "classification",
    "preference": "alignment",
    "rated": "alignment",
    "prompt": "verifiable",
    "text": "domain",
}
_NAMES = ("pilot.yaml", "recipe.yaml", "today.yaml")


@dataclass(frozen=True)
class Hardware:
    """What the command line said of the machine."""

    gpu: str | None = None
    gpus: str | None = None
    cpu: bool = False
    memory: str | None = None


@dataclass(frozen=True)
class Asked:
    """What the command line said of what is wanted; None where it said nothing."""

    model: str | None = None
    data: tuple[str, ...] = ()
    rows: int | None = None
    purposes: tuple[str, ...] = ()
    private: bool | None = None
    on_device: bool = False
    deadline: str | None = None
    variants: int = 1
    quality: Quality | None = None
    reward: str | None = None
    general: str | None = None


def run(
    asked: Asked,
    hardware: Hardware,
    out: Path | None = None,
    force: bool = False,
    language: Language | None = None,
    json: bool = False,
) -> None:
    """Give advice; ask for what is missing where somebody can answer, else say what was assumed.

    Raises:
        UserError: with everything wrong with the flags, the model or the data.
    """
    tongue = language_of(language)
    told = Told(asked.model, list(asked.data), purposes_of(asked.purposes), asked.private)
    _refuse(asked, hardware, out, force)
    if may_ask(json):
        ask(told, tongue)
    advice = advise(_situation(asked, told, hardware), out)
    paths: dict[str, Path] = {}
    if out is not None:
        if not told.data:
            raise UserError(Problem("There are no data to write a recipe for.", "luthier advise --out", "add --data"))
        try:
            paths = write(advice, out, tongue)
        except OSError as error:
            raise disk_fault(out, error) or error from error
    if json:
        print_json(as_dict(advice, tongue, paths))
        return
    show(advice, tongue, paths)


def _situation(asked: Asked, told: Told, hardware: Hardware) -> Situation:
    """Return the situation; what was not told is assumed, and noted."""
    problems: list[Problem] = []
    assumed: list[tuple[str, str]] = []
    model = data = None
    name = told.model
    if name is None:
        name = "starter"
        assumed.append(("the model is starter (--model)", "模型为 starter（--model）"))
    try:
        model = profile_model(name)
    except UserError as error:
        problems += error.problems
    try:
        data = _data(asked, told, assumed, model is not None and model.is_encoder)
    except UserError as error:
        problems += error.problems
    if problems or model is None or data is None:
        raise UserError(*problems)
    if model.known_by == "name":
        assumed.append(
            (
                f"{name} has {model.parameters / 1e9:.3g} B parameters in usual proportions, going by its name; its "
                "config.json is not here",
                f"{name} 按名称推断为 {model.parameters / 1e9:.3g} B 参数、通常的比例；本机没有它的 config.json",
            )
        )
    purposes = told.purposes or _purposes(data, assumed)
    if told.private is None:
        assumed.append(("the data may be used where the training runs (--private)", "数据可在训练处使用（--private）"))
    wishes = Wishes(
        purposes=purposes,
        private=bool(told.private),
        on_device=asked.on_device,
        hours=_hours(asked.deadline),
        variants=asked.variants,
        quality=asked.quality or "good",
        reward=asked.reward,
        general=asked.general,
    )
    return Situation(model, data, _machine(hardware, assumed), wishes, assumed=tuple(assumed))


def _data(asked: Asked, told: Told, assumed: list[tuple[str, str]], is_encoder: bool) -> tuple[DataProfile, ...]:
    classify = "classification" in told.purposes or is_encoder
    if told.data:
        problems, found = [], []
        for path in told.data:
            try:
                found.append(profile_data(path, classify))
            except DataError as error:
                problems += error.problems
        if problems:
            raise DataError(*problems)
        return tuple(replace(d, rows=asked.rows) if asked.rows and len(found) == 1 else d for d in found)
    form: Form = "labelled" if classify else "preference" if "alignment" in told.purposes else "conversation"
    rows = asked.rows or ASSUMED_ROWS
    kinds = {"labelled": ("texts with labels", "带标签的文本"), "preference": ("pairs of answers", "成对回答")}
    english, chinese = kinds.get(form, ("prompts with answers", "问答"))
    assumed.append((f"{rows:,} rows of {english} (--data, --rows)", f"{rows:,} 行{chinese}（--data、--rows）"))
    return (DataProfile("data.jsonl", form, form, rows, 0),)


def _purposes(data: Sequence[DataProfile], assumed: list[tuple[str, str]]) -> frozenset[Purpose]:
    """Return the purpose that the rows speak of."""
    purpose: Purpose = "task"
    for profile in reversed(data):
        purpose = _PURPOSE_OF.get(profile.form, purpose)
    assumed.append(
        (f"the purpose is {purpose}, going by the rows (--purpose)", f"用途为 {purpose}，由数据推断（--purpose）")
    )
    return frozenset({purpose})


def _machine(hardware: Hardware, assumed: list[tuple[str, str]]) -> Machine:
    told = hardware.gpu or hardware.gpus
    if told is not None:
        return machines.gpu(told)
    if hardware.cpu or hardware.memory:
        return machines.cpu(hardware.memory)
    found = machines.look()
    kind = ("a GPU", "GPU") if found.kind == "gpu" else ("no GPU", "没有 GPU")
    assumed.append(
        (f"training runs on this machine, which has {kind[0]} (--gpu, --cpu)", f"在本机训练，{kind[1]}（--gpu、--cpu）")
    )
    return found


def _hours(text: str | None) -> float | None:
    """Return the hours of a deadline such as 90min, 6h, 2d.

    Raises:
        UserError: it is no span of time.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(m|min|minutes?|h|hours?|d|days?)?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise UserError(
            Problem(f'"{text}" is no span of time.', "luthier advise --deadline", "write it like 90min, 6h, 2d")
        )
    unit = (found[2] or "h")[0]
    return float(found[1]) * {"m": 1 / 60, "h": 1.0, "d": 24.0}[unit]


def _refuse(asked: Asked, hardware: Hardware, out: Path | None, force: bool) -> None:
    """Raise what is wrong between the flags, before anything is read.

    Raises:
        UserError: with everything.
    """
    problems = []
    kinds = [
        name for name, given in (("--gpu", hardware.gpu), ("--gpus", hardware.gpus), ("--cpu", hardware.cpu)) if given
    ]
    if len(kinds) > 1:
        what = f"{' and '.join(kinds)} name the machine twice."
        problems.append(Problem(what, "luthier advise", "give one of them, such as --gpu 2x24GB"))
    if hardware.memory and (hardware.gpu or hardware.gpus):
        what = "--memory is the memory of a machine without a GPU."
        problems.append(Problem(what, "luthier advise", "give the card's with --gpu 24GB"))
    for parse, text in (
        (machines.gpu, hardware.gpu or hardware.gpus),
        (machines.cpu, hardware.memory),
        (_hours, asked.deadline),
    ):
        try:
            _ = text is not None and parse(text)
        except LuthierError as error:
            problems += error.problems if isinstance(error, UserError) else []
    there = [str(out / name) for name in _NAMES if out is not None and (out / name).exists()]
    if there and not force:
        what = f"There are recipes already: {', '.join(there)}."
        problems.append(Problem(what, "luthier advise --out", "choose another folder, or add --force"))
    if problems:
        raise UserError(*problems)
