"""`luthier new PATH`: a recipe in which every key is explained, made from the fields themselves."""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml
from pydantic import BaseModel

from luthier.core.component import Component, component_class
from luthier.core.errors import Problem, RecipeError
from luthier.core.rundir import write_atomic
from luthier.data.spec import DataSpec
from luthier.methods.base import Method
from luthier.run.config import ModelSpec, Recipe

_SECTIONS = {
    "What is trained, towards what, on what": (
        "model",
        "method",
        "objective",
        "data",
        "mix",
        "curriculum",
        "train_on",
        "reasoning",
    ),
    "How long a sequence may be": ("max_length", "on_overlong", "packing"),
    "How long, how fast": (
        "epochs",
        "max_steps",
        "batch_size",
        "micro_batch_size",
        "learning_rate",
        "schedule",
        "warmup_ratio",
        "warmup_steps",
        "optimizer",
        "weight_decay",
        "max_grad_norm",
        "regularizers",
    ),
    "What is measured": ("eval_fraction", "eval_data", "eval_steps", "evaluate", "forgetting", "gate", "samples"),
    "What is kept": ("run", "save_steps", "keep_checkpoints", "early_stopping", "final_checkpoint", "log_to"),
    "Where and how it computes": ("dtype", "gradient_checkpointing", "cache_frozen", "seed"),
}
_WIDTH = 100


def run(path: Path, method: str = "lora", force: bool = False) -> None:
    """Write a commented recipe.

    Raises:
        RecipeError: there is no such method, or the file exists.
        RunError: the file cannot be written.
    """
    chosen = component_class("method", method)
    assert issubclass(chosen, Method)
    if path.suffix.lower() not in (".yaml", ".yml"):
        beside = path / "recipe.yaml" if path.is_dir() else path.with_name(f"{path.name}.yaml")
        raise RecipeError(Problem("A recipe is a YAML file.", str(path), f"write luthier new {beside}"))
    if path.exists() and not force:
        raise RecipeError(Problem("The file exists already.", str(path), "choose another name, or add --force"))
    write_atomic(path, recipe_text(path, chosen))
    print(f"{path}: every key is explained in it. Next: luthier check {path}, then luthier train {path}")


def recipe_text(path: Path, method: type[Method]) -> str:
    """Return the recipe: ordinary keys set, all others as comments with their defaults."""
    live = {
        "model": "starter",
        "objective": method.example_objective,
        "data": "starter:feelings" if method.example_objective == "classify" else "starter:quickstart",
        "epochs": 1,
        "batch_size": 8,
        "learning_rate": method.default_learning_rate,
        "eval_fraction": 0.1,
    }
    lines = [
        f"# Check it with: luthier check {path}",
        f"# Train with it: luthier train {path}",
        "# A key behind a # stands at its default. Take the # away to change it.",
    ]
    for title, keys in _SECTIONS.items():
        lines += ["", f"# {f' {title} ':─^{_WIDTH - 2}}"]
        for key in keys:
            lines += ["", *_comment(_described(Recipe, key))]
            if key == "method":
                lines += _method(method)
            elif key in live:
                lines += _more(key)
                lines += [_entry(key, live[key])]
            else:
                lines += [f"# {_entry(key, _default(Recipe, key))}"]
    return "\n".join(lines) + "\n"


def _method(method: type[Method]) -> list[str]:
    kind = method.model_fields["kind"].default
    needs = method.example  # what a method has to be told to train anything
    lines = [*_comment(f"{kind}: {method.summary} Good for: {method.when}"), "method:", f"  kind: {kind}"]
    for name in _own_fields(method):
        lines += _comment(_described(method, name), "  ")
        entry = _entry(name, needs.get(name, _default(method, name)))
        lines += [f"  {entry}" if name in needs else f"  # {entry}"]
    return lines


def _more(key: str) -> list[str]:
    """Return what else may be said of the model or the data, in the long form."""
    spec = {"model": ModelSpec, "data": DataSpec}.get(key)
    if spec is None:
        return []
    lines = [f"# The long form is {key}: {{path: …}} with any of these besides:"]
    for name in _own_fields(spec):
        lines += _comment(f"  {_entry(name, _default(spec, name))}   {_described(spec, name)}", hang="      ")
    return lines


def _own_fields(cls: type[BaseModel]) -> list[str]:
    return [name for name in cls.model_fields if name not in ("kind", "path")]


def _described(cls: type[BaseModel], name: str) -> str:
    return " ".join((cls.model_fields[name].description or "").split())


def _default(cls: type[BaseModel], name: str) -> object:
    default = cls.model_fields[name].get_default(call_default_factory=True)
    return default.model_dump() if isinstance(default, Component) else default


def _entry(key: str, value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, float):  # PyYAML would write 2.0e-05
        return f"{key}: {plain:g}"
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return f"{key}: {text.removesuffix(chr(10)).removesuffix('...').strip()}"


def _comment(text: str, indent: str = "", hang: str = "") -> list[str]:
    wrapped = textwrap.wrap(text, _WIDTH - len(indent) - 2, subsequent_indent=hang, drop_whitespace=True)
    return [f"{indent}# {line}" for line in wrapped]
