"""Hybrid: several methods at once, each on tensors of its own.

Each part is a whole method and keeps its own laws: it chooses, applies, groups its tensors for the optimizer, keeps its
state, penalises, reports, merges. While a part acts, only its own tensors are marked as trained, so no part has to know
of another. What two parts would both train is refused by name, and so is an adapter beside a weight that another part
trains in full: the two would learn the same thing twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from luthier.core.component import StageFacts, component_class, kinds
from luthier.core.errors import ModelError, Problem, RunError
from luthier.methods.base import Method, Probe, trainable

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel

    from luthier.core.batch import Batch

_OWNED = "luthier_hybrid_parts"
"""Attribute of a prepared model: the trained parameters of each part, in the order of the recipe."""
_BLOCK = re.compile(r"^.*?\.\d+(?=\.)")


def _build(value: object) -> object:
    """Return the method that a part names: its kind alone, or a mapping with `kind` and its fields."""
    value = {"kind": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise PydanticCustomError("no_kind", "no kind", {"family": "method"})
    if kind not in kinds("method") or kind == "hybrid":
        raise PydanticCustomError("unknown_kind", "unknown kind", {"family": "method", "kind": kind})
    method = component_class("method", kind).model_validate(value)
    for name, number in method:
        if isinstance(number, float) and not math.isfinite(number):
            raise PydanticCustomError("component_not_finite", "not finite", {"field": name, "input": number})
    return method


class Hybrid(Method):
    """Train different parts of the model by different methods."""

    kind: Literal["hybrid"] = "hybrid"

    parts: tuple[Annotated[SerializeAsAny[Method], BeforeValidator(_build)], ...] = ()
    """The methods, each written as `method` itself: a word, or {kind: lora, rank: 16, …}. No tensor may belong to two
    of them; most methods can be kept off with targets, exclude or patterns."""

    title: ClassVar[str] = "Hybrid"
    summary: ClassVar[str] = "Several methods at once, each on tensors of its own."
    principle: ClassVar[str] = (
        "Parts of a model differ in how much they have to change. The upper blocks, closest to the answer, can be trained "
        "in full, the matrices below them by thin updates, the norms by a few numbers each. Each part is a method with all "
        "its own rules; all share one learning rate, unless a part scales its own."
    )
    equation: ClassVar[str] = "θ = ∪ᵢ θᵢ,  θᵢ ∩ θⱼ = ∅,  each θᵢ moved as its own method says"
    paper: ClassVar[str] = (
        "Mao et al. 2021, UniPELT, arXiv:2110.07577 (several methods in one model; without its gates)"
    )
    moves: ClassVar[str] = "what the parts move, each tensor in one part"
    typical_share: ClassVar[str] = "1 to 30 %"
    when: ClassVar[str] = (
        "The upper blocks need more freedom than the rest; a method for norms or embeddings beside one for matrices."
    )
    when_not: ClassVar[str] = "One method does: more parts are more to tune, and PEFT cannot open the folder."
    zh: ClassVar[dict[str, str]] = {
        "title": "混合方法",
        "summary": "同时使用多种方法，各自训练不同的张量。",
        "principle": "模型各部分需要改变的程度不同：最靠近输出的上层可完整训练，下面的矩阵用细长的低秩更新，归一化层只需少量参数。每个部分都是一种完整的方法，遵守自己的全部规则；除非某部分自行缩放，所有部分共用一个学习率。",
        "moves": "各部分所训练的内容，每个张量只属于一个部分",
        "when": "上层比其余部分需要更大的自由度；在训练矩阵的方法之外，再用一种方法训练归一化层或词嵌入时。",
        "when_not": "一种方法就够用时：部分越多，要调的越多，而且 PEFT 无法打开这样的文件夹。",
        "parts": "各个方法，写法与 method 相同：一个词，或 {kind: lora, rank: 16, …}。同一张量不能属于两个部分；多数方法可用 targets、exclude 或 patterns 避开。",
    }
    default_learning_rate: ClassVar[float] = 1e-4
    example: ClassVar[dict[str, object]] = {
        "parts": [{"kind": "layers", "blocks": [-1]}, {"kind": "lora", "exclude": ["model.layers.4.*"]}]
    }

    @property
    def plans_steps(self) -> bool:
        return any(part.plans_steps for part in self.parts)

    @property
    def base_bits(self) -> Literal[4, 8] | None:
        return next((part.base_bits for part in self.parts if part.base_bits), None)

    @property
    def base_quantization(self) -> tuple[Literal["nf4", "fp4"], bool]:
        quantising = [part for part in self.parts if part.base_bits]
        return quantising[0].base_quantization if quantising else super().base_quantization

    @property
    def reserved_positions(self) -> int:
        return sum(part.reserved_positions for part in self.parts)

    def problems(self, facts: StageFacts) -> list[Problem]:
        if len(self.parts) < 2:
            remedy = "list at least two, e.g. `parts: [{kind: layers, last: 2}, {kind: lora, exclude: […]}]`"
            return [Problem(f"The method hybrid has {len(self.parts)} parts.", "method.parts", remedy)]
        found = []
        for index, part in enumerate(self.parts):
            found += [_placed(p, index) for p in part.problems(replace(facts, method=part))]
            if part.changes_architecture or part.keeps_features:
                what = f"{part.kind_name} takes the whole model, and leaves nothing to other parts."
                found.append(
                    Problem(what, f"method.parts.{index}", f"write method: {part.kind_name}, or drop this part")
                )
        bits = {part.base_bits for part in self.parts if part.base_bits}
        if len(bits) > 1:
            found.append(Problem("Two parts want the base in 4 and in 8 bits.", "method.parts", "choose one of them"))
        whole = [i for i, part in enumerate(self.parts) if part.in_place and part.kind_name != "bitfit"]
        if bits and whole:
            what = f"Another part keeps the base in {bits.pop()} bits, and quantised weights cannot be trained in full."
            found.append(Problem(what, f"method.parts.{whole[0]}", "use lora in place of qlora, or drop this part"))
        return found

    def choose(self, probe: Probe) -> Self:
        chosen = []
        for index, part in enumerate(self.parts):
            with _renamed(index):
                chosen.append(part.choose(probe))
        return self.model_copy(update={"parts": tuple(chosen)})

    def in_words(self) -> str:
        said = ((part.kind_name, part.in_words()) for part in self.parts)
        return "; ".join(f"{kind}: {words}" for kind, words in said if words)

    def apply(self, model: PreTrainedModel) -> None:
        plain = {id(p): n for n, p in model.named_parameters()}
        owned: list[list[Parameter]] = [[] for _ in self.parts]
        # Adapters come last: they wrap modules, and the others look for these by their plain names.
        for index in sorted(range(len(self.parts)), key=lambda i: not self.parts[i].in_place):
            earlier = {id(p) for part in owned for p in part if id(p) not in plain}
            with _renamed(index):
                self.parts[index].apply(model)
            owned[index] = [p for p in trainable(model).values() if id(p) not in earlier]
        self._refuse_overlaps(model, owned, plain)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in (p for part in owned for p in part):
            parameter.requires_grad_(True)
        setattr(model, _OWNED, owned)

    def count(self, model: PreTrainedModel) -> int:
        total = 0
        for index, part in enumerate(self.parts):
            with _renamed(index):
                total += part.count(model)
        return total

    def _refuse_overlaps(self, model: PreTrainedModel, owned: list[list[Parameter]], plain: dict[int, str]) -> None:
        """Make sure that the parts are disjoint.

        Raises:
            ModelError: with every pair of parts that is not, and the tensors.
        """
        names = {id(p): n for n, p in model.named_parameters()}
        found = []
        for later in range(len(owned)):
            for first in range(later):
                both = [plain.get(id(p), "") for p in owned[later] if any(p is other for other in owned[first])]
                both += _beside(owned[first], owned[later], names, plain)
                both += _beside(owned[later], owned[first], names, plain)
                gone = [p for p in owned[first] + owned[later] if id(p) not in names]
                if both or gone:
                    found.append(self._overlap(first, later, both))
        if found:
            raise ModelError(*found)

    def _overlap(self, first: int, later: int, names: list[str]) -> Problem:
        kinds_ = f"{self.parts[first].kind_name} (part {first}) and {self.parts[later].kind_name} (part {later})"
        index = next((i for i in (later, first) if "exclude" in type(self.parts[i]).model_fields), later)
        where = f"method.parts.{index}"
        if not names:
            remedy = "give each other targets, in full names or patterns that do not meet"
            return Problem(f"{kinds_} adapt the same modules.", where, remedy)
        shown = ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")
        places = sorted({f"{m.group()}.*" if (m := _BLOCK.match(n)) else n for n in names}, key=_numbers)
        can_exclude = "exclude" in type(self.parts[index]).model_fields
        listed = ", ".join(f'"{place}"' for place in places)
        remedy = f"add to {self.parts[index].kind_name}: exclude: [{listed}]" if can_exclude else "choose other tensors"
        return Problem(f"{kinds_} both train {shown}.", where, remedy)

    # ------------------------------------------------------------------ what each part does with its own tensors

    def param_groups(self, model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
        groups: list[dict[str, object]] = []
        for part, _ in self._each(model):
            groups += part.param_groups(model, weight_decay)
        with _only(model, _unowned(model)):  # a classifier's new head belongs to no part
            return groups + super().param_groups(model, weight_decay)

    def state_dict(self, model: PreTrainedModel) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for part, prefix in self._each(model):
            tensors |= {prefix + n: t for n, t in part.state_dict(model).items()}
        with _only(model, _unowned(model)):
            return tensors | super().state_dict(model)

    def load_state_dict(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
        mine = {n: t.shape for n, t in self.state_dict(model).items()}
        given = {n: t.shape for n, t in tensors.items()}
        for what, names in (
            ("missing", mine.keys() - given.keys()),
            ("unexpected", given.keys() - mine.keys()),
            ("other shape", {n for n in mine.keys() & given.keys() if mine[n] != given[n]}),
        ):
            if names:  # before the first part takes anything in
                detail = f"{what}: {', '.join(sorted(names)[:3])}"
                raise RunError(Problem(f"The saved tensors do not fit the model ({detail}).", where=self.title))
        for part, prefix in self._each(model):
            part.load_state_dict(model, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        with _only(model, _unowned(model)):
            super().load_state_dict(model, {n: tensors[n] for n in trainable(model)})

    def why_unmergeable(self, model: PreTrainedModel) -> str:
        for part, _ in self._each(model):
            reason = part.why_unmergeable(model)
            if reason:
                return f"of its part {part.kind_name}, {reason}"
        return ""

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Merge each part: adapters first, so that the others find the modules by their plain names again."""
        super().merge(model)  # refuses before anything has changed
        order = sorted(range(len(self.parts)), key=lambda i: self.parts[i].in_place)
        owned = _owned(model)
        for index in order:
            with _only(model, owned[index]):
                model = self.parts[index].merge(model)
        delattr(model, _OWNED)
        return model

    def init_state(self, model: PreTrainedModel, total_steps: int, steps_per_epoch: int) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for part, prefix in self._each(model):
            state |= {prefix + n: t for n, t in part.init_state(model, total_steps, steps_per_epoch).items()}
        return state

    def before_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        for part, prefix in self._each(model, "before_step"):
            with _slice(state, prefix) as own:
                part.before_step(model, own, step)

    def penalty(self, model: PreTrainedModel, batch: Batch) -> Tensor | None:
        found = [part.penalty(model, batch) for part, _ in self._each(model, "penalty")]
        given = [term for term in found if term is not None]
        return sum(given[1:], given[0]) if given else None

    def after_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        for part, prefix in self._each(model, "after_step"):
            with _slice(state, prefix) as own:
                part.after_step(model, own, step)

    def report(self, model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, object]:
        said = []
        for part, prefix in self._each(model):
            trained = sum(p.numel() for p in trainable(model).values())
            with _slice(state, prefix) as own:
                said.append({"kind": part.kind_name, "trainable_parameters": trained, **part.report(model, own)})
        return {"parts": said}

    def _each(self, model: PreTrainedModel, doing: str = "") -> Iterator[tuple[Method, str]]:
        """Yield each part, with only its tensors marked as trained, and the prefix of its names in files and state.

        Args:
            doing: skip the parts that leave this method of the base class as it is.
        """
        for index, (part, mine) in enumerate(zip(self.parts, _owned(model))):
            if doing and getattr(type(part), doing) is getattr(Method, doing):
                continue
            with _only(model, mine):
                yield part, f"part{index}."


def _owned(model: PreTrainedModel) -> list[list[Parameter]]:
    return cast("list[list[Parameter]]", getattr(model, _OWNED))


def _unowned(model: PreTrainedModel) -> list[Parameter]:
    taken = {id(p) for part in _owned(model) for p in part}
    return [p for p in trainable(model).values() if id(p) not in taken]


@contextmanager
def _only(model: PreTrainedModel, mine: list[Parameter]) -> Iterator[None]:
    """Run the body with nothing but `mine` marked as trained; what the body does to `mine` stays."""
    own = {id(p) for p in mine}
    others = [p for p in trainable(model).values() if id(p) not in own]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def _slice(state: dict[str, Tensor], prefix: str) -> Iterator[dict[str, Tensor]]:
    """Give a part its own state by its own names, and take back what it has put in its place."""
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    yield own
    state.update({prefix + n: t for n, t in own.items()})


def _beside(
    trained: list[Parameter], added: list[Parameter], names: dict[int, str], plain: dict[int, str]
) -> list[str]:
    """Return the weights among `trained` beside which some of `added`, new in the model, work as an adapter."""
    homes = {}
    for parameter in trained:
        name = names.get(id(parameter), "")
        if id(parameter) in plain and name.endswith(".weight"):
            homes[name.removesuffix(".weight").removesuffix(".base_layer")] = plain[id(parameter)]
    found = set()
    for parameter in added:
        if id(parameter) in plain:
            continue
        path = names.get(id(parameter), "").split(".")
        found |= {homes[home] for home in (".".join(path[:n]) for n in range(1, len(path))) if home in homes}
    return sorted(found, key=_numbers)


def _numbers(name: str) -> list[tuple[int, str]]:
    """Sort key in which block 10 comes after block 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


@contextmanager
def _renamed(index: int) -> Iterator[None]:
    """Let problems that a part raises name the part."""
    try:
        yield
    except ModelError as error:
        raise ModelError(*(_placed(p, index) for p in error.problems)) from error


def _placed(problem: Problem, index: int) -> Problem:
    key = problem.where or "method"
    where = re.sub(r"^method(?=\.|$)", f"method.parts.{index}", key)
    return replace(problem, where=where)
