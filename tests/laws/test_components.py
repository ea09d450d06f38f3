"""The laws of components: a recipe survives its dump, and every field is documented, read, and known by name."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

import luthier
from luthier.core.component import Component, StageFacts, component_class, kinds
from luthier.core.errors import RecipeError

FAMILIES = ["method", "objective", "optimizer", "schedule", "reward", "regularizer", "task"]
MEMBERS = [(family, kind) for family in FAMILIES for kind in kinds(family)]
# Values other than the defaults, so that a round trip that loses something is seen.
UNUSUAL = {
    ("method", "lora"): {"rank": 5, "alpha": 3.25, "dropout": 0.1, "targets": ["q", "mlp"]},
    ("method", "layers"): {"last": 2, "blocks": [0, -1], "norms": True, "patterns": ["*.mlp.*"]},
    ("method", "moe"): {
        "join": {"runs": ["a", "b"], "top_k": 1},
        "train": "all",
        "experts": [1],
        "router_aux_loss": 0.5,
    },
    ("method", "bitfit"): {"norms": True},
    ("method", "hybrid"): {"parts": [{"kind": "layers", "last": 1}, {"kind": "lora", "rank": 3}]},
    ("optimizer", "adamw"): {"beta1": 0.8, "beta2": 0.97, "eps": 1e-6},
    ("method", "ulmfit"): {"decay": 2.0, "groups": 2, "gradual_unfreezing": False, "hidden": 20},
    ("method", "feature_extraction"): {"pooling": "mean", "cache": False},
    ("method", "dense_head"): {"hidden": [30, 20], "activation": "tanh", "pooling": "max"},
    ("objective", "classify"): {"names": {"0": "no"}, "class_weights": [1.0, 2.5], "label_smoothing": 0.1},
    ("objective", "grpo"): {"reward": {"kind": "regex", "pattern": "a+"}, "num_generations": 4, "loss": "dr_grpo"},
    ("objective", "rloo"): {"reward": "exact_match", "normalize_advantages": True, "epsilon_high": 0.3},
    ("objective", "ppo"): {"reward": "rewards.py:score", "minibatches": 2, "target_kl": 0.1, "epsilon_value": None},
    ("objective", "distill"): {
        "teacher": "runs/big",
        "loss": "jsd",
        "temperature": 2.0,
        "alpha": 0.5,
        "on_policy": 0.25,
    },
    ("schedule", "slanted_triangular"): {"cut_frac": 0.2, "ratio": 10.0},
    ("schedule", "cosine"): {"min_ratio": 0.25},
    ("schedule", "linear"): {"min_ratio": 0.5},
    ("regularizer", "kl"): {"weight": 0.5, "direction": "forward"},
    ("regularizer", "l2_sp"): {"weight": 0.5},
    ("regularizer", "ewc"): {"data": {"path": "general.jsonl", "limit": 9}, "weight": 3.0, "rows": 5},
    ("regularizer", "replay"): {"data": {"path": "general.jsonl", "limit": 9}, "share": 0.25},
    ("regularizer", "neftune"): {"alpha": 10.0},
    ("task", "loss"): {"data": {"path": "held.jsonl", "limit": 9}, "name": "held", "limit": 5, "every": 10},
    ("task", "multiple_choice"): {"data": {"path": "a.jsonl"}, "normalized": True, "shots": 3, "letters": True},
    ("task", "minimal_pairs"): {"data": {"path": "a.csv"}, "name": "pairs"},
    ("task", "continuation"): {"data": {"path": "a.jsonl"}},
    ("task", "exact_match"): {"data": {"path": "a.jsonl"}, "max_new_tokens": 9},
    ("task", "f1"): {"data": {"path": "a.jsonl"}, "stop": "\n"},
    ("task", "rouge"): {"data": {"path": "a.jsonl"}, "stop": "\n"},
    ("task", "bleu"): {"data": {"path": "a.jsonl"}, "max_new_tokens": 9},
    ("task", "chrf"): {"data": {"path": "a.jsonl"}, "max_new_tokens": 9},
    ("task", "classification"): {"data": {"path": "a.csv"}, "by": "answer", "names": {"0": "no"}, "score": "macro_f1"},
    ("task", "code"): {"data": {"path": "a.jsonl"}, "run_code": True, "samples": 4, "k": 2, "temperature": 0.8},
    ("task", "judge"): {"data": {"path": "a.jsonl"}, "judge": {"kind": "length", "at_most": 80}, "stop": "\n"},
    ("task", "bbq"): {"data": {"path": "a.jsonl"}, "name": "bias"},
    ("task", "extraction"): {"data": {"path": "a.jsonl"}, "prefix": 8, "suffix": 20},
    ("task", "lm_eval"): {"task": "mine", "include": "tasks", "shots": 2, "chat": True, "score": "acc_norm"},
    ("reward", "exact_match"): {"column": "truth", "ignore_case": True},
    ("reward", "regex"): {"pattern": "a+", "full": True, "match": 2.0, "no_match": -1.0},
    ("reward", "length"): {"at_most": 80, "at_least": 10, "slack": 20},
    ("reward", "function"): {"path": "rewards.py:score"},
    ("reward", "model"): {"path": "runs/reward"},
    ("reward", "logprob"): {"path": "starter", "rubric": "rubric.md", "yes": "good", "no": "bad"},
    ("reward", "judge"): {"endpoint": "http://127.0.0.1:8000/v1", "model": "judge", "rubric": "rubric.md", "high": 5.0},
    ("reward", "sum"): {"parts": ["exact_match", {"kind": "length", "at_most": 80}], "weights": [1.0, 0.5]},
}


def _make(family: str, kind: str) -> Component:
    return component_class(family, kind).model_validate({"kind": kind, **UNUSUAL.get((family, kind), {})})


def test_every_family_has_members_and_the_four_first_methods_are_among_them() -> None:
    assert all(kinds(family) for family in FAMILIES)
    assert {"full", "lora", "layers", "bitfit"} <= kinds("method").keys()
    assert {"sft", "lm"} <= kinds("objective").keys()


@pytest.mark.parametrize(("family", "kind"), MEMBERS)
def test_dumped_and_parsed_it_is_equal(family: str, kind: str) -> None:
    member = _make(family, kind)
    cls = component_class(family, kind)
    assert cls.model_validate(member.model_dump()) == member
    assert cls.model_validate_json(member.model_dump_json()) == member
    unusual = UNUSUAL.get((family, kind), {})
    assert unusual.keys() <= member.model_dump(exclude_defaults=True).keys() | {"kind"}


@pytest.mark.parametrize(("family", "kind"), MEMBERS)
def test_it_names_itself_by_a_literal_and_cannot_be_changed(family: str, kind: str) -> None:
    cls = component_class(family, kind)
    assert get_args(cls.model_fields["kind"].annotation) == (kind,)
    with pytest.raises(ValidationError, match="frozen"):
        _make(family, kind).kind = "another"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("family", "kind"), MEMBERS)
def test_an_unknown_key_is_an_error(family: str, kind: str) -> None:
    with pytest.raises(ValidationError, match="lora_r"):
        component_class(family, kind).model_validate({"kind": kind, "lora_r": 8})


@pytest.mark.parametrize(("family", "kind"), MEMBERS)
def test_every_field_is_documented_in_words_for_a_user(family: str, kind: str) -> None:
    for name, field in component_class(family, kind).model_fields.items():
        if name != "kind":
            assert field.description and field.description.rstrip().endswith((".", ")")), f"{kind}.{name}"  # noqa: PT018


@pytest.mark.parametrize(("family", "kind"), MEMBERS)
def test_its_class_carries_a_docstring_and_what_the_pages_show(family: str, kind: str) -> None:
    cls = component_class(family, kind)
    assert inspect.getdoc(cls)
    shown = {
        "method": ("title", "summary", "principle", "equation", "paper", "moves", "typical_share", "when", "when_not"),
        "objective": ("title", "summary", "paper"),
        "regularizer": ("title", "summary", "paper", "when", "when_not"),
        "task": ("title", "summary", "metric"),
    }
    for name in shown.get(family, ()):
        assert str(getattr(cls, name)).strip(), name
    if family in shown:
        assert "title" in cls.zh  # type: ignore[attr-defined]
        assert "summary" in cls.zh  # type: ignore[attr-defined]


def _sources() -> dict[Path, ast.Module]:
    root = Path(luthier.__file__).parent
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.py"))}


def _read_attributes(trees: dict[Path, ast.Module]) -> set[str]:
    """Names read as an attribute anywhere, like `self.rank`; a field's definition is a plain name, not an attribute."""
    return {
        node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def _read_in_class(cls: type[Component], trees: dict[Path, ast.Module]) -> set[str]:
    """Fields read through `self` in the class itself or a parent of its family."""
    found: set[str] = set()
    for parent in cls.__mro__:
        if not issubclass(parent, Component):
            continue
        tree = trees[Path(inspect.getfile(parent))]
        (node,) = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == parent.__name__]
        found |= {
            n.attr
            for n in ast.walk(node)
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
        }
    return found


def test_every_field_of_a_component_is_read_by_its_own_methods() -> None:
    trees = _sources()
    unread = [
        f"{kind}.{name}"
        for family, kind in MEMBERS
        for name in component_class(family, kind).model_fields
        if name != "kind" and name not in _read_in_class(component_class(family, kind), trees)
    ]
    assert unread == []


def test_every_field_of_every_configuration_is_read_somewhere() -> None:
    trees = _sources()
    read = _read_attributes(trees)
    models: set[type[BaseModel]] = set()
    for info in pkgutil.walk_packages(luthier.__path__, "luthier."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        models |= {
            m
            for m in vars(module).values()
            if inspect.isclass(m) and issubclass(m, BaseModel) and m.__module__ == info.name
        }
    assert models
    unread = [f"{m.__name__}.{n}" for m in models for n in m.model_fields if n != "kind" and n not in read]
    assert sorted(unread) == []


def test_a_kind_that_does_not_exist_is_answered_with_its_neighbour_and_all_choices() -> None:
    with pytest.raises(RecipeError) as caught:
        component_class("method", "lorra")
    assert 'Did you mean "lora"?' in str(caught.value)
    assert all(kind in str(caught.value) for kind in kinds("method"))


def test_a_kind_can_be_taken_only_once() -> None:
    from luthier.methods.lora import Lora

    with pytest.raises(TypeError, match="already taken"):

        class Another(Lora):
            pass

    assert component_class("method", "lora") is Lora


@pytest.mark.parametrize(
    ("options", "config", "expected"),
    [
        ({"kind": "layers"}, {}, "told no layer"),
        ({"kind": "layers", "last": 9}, {"num_hidden_layers": 5}, "has 5 blocks, not 9"),
        ({"kind": "layers", "first": 9}, {"n_layer": 5}, "has 5 blocks, not 9"),
        ({"kind": "layers", "blocks": [0, 7]}, {"num_hidden_layers": 5}, "no block 7"),
        ({"kind": "layers", "blocks": [-6]}, {"num_hidden_layers": 5}, "no block -6"),
        ({"kind": "layers", "head": True}, {"tie_word_embeddings": True}, "shares its weight"),
        ({"kind": "bitfit"}, {"model_type": "llama"}, "have no biases"),
        ({"kind": "bitfit", "norms": True}, {"model_type": "llama"}, None),
        ({"kind": "bitfit"}, {"model_type": "llama", "attention_bias": True}, None),
        ({"kind": "bitfit"}, {"model_type": "gpt2"}, None),
        ({"kind": "layers", "blocks": [-5, 4]}, {"num_hidden_layers": 5}, None),
        ({"kind": "lora"}, {"model_type": "llama"}, None),
        ({"kind": "full"}, {}, None),
    ],
    ids=str,
)
def test_what_the_mathematics_forbids_is_said_by_the_component_with_its_remedy(
    options: dict[str, object], config: dict[str, object], expected: str | None
) -> None:
    method = component_class("method", str(options["kind"])).model_validate(options)
    problems = method.problems(StageFacts(method=method, objective=_make("objective", "sft"), model_config=config))
    assert [expected in str(p) for p in problems] == ([True] if expected else [])
