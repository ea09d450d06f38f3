"""The model that an objective learns from: opened once, frozen, and compared with the student's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import ModelError, Problem
from luthier.models.causal import CausalModel
from luthier.run.opened import open_target

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel
    from luthier.run.config import Recipe
    from luthier.run.screen import Screen


def open_teacher(recipe: Recipe, model: LoadedModel, screen: Screen) -> None:
    """Give the student its teacher, where the objective learns from one.

    Raises:
        ModelError: it writes no text, or its tokens are others than the student's.
    """
    name = recipe.objective.learns_from
    if name is None:
        return
    assert isinstance(model, CausalModel), "objectives that learn from a teacher predict tokens"
    teacher, _ = open_target(name)
    place = recipe.place("objective.teacher")
    if not isinstance(teacher, CausalModel):
        what = f"The teacher {name} tells classes apart; there is nothing in it that predicts words."
        raise ModelError(Problem(what, place, "name a model that writes text"))
    _require_same_tokens(model, teacher, name, place)
    teacher.module.requires_grad_(False)
    teacher.module.eval()
    teacher.module.to(model.device)  # type: ignore[arg-type]
    if model.packs and not teacher.packs:
        model.packs = False
        model.notes.append("Sequences are padded, because those of the teacher cannot be packed.")
    model.teacher = teacher
    size = sum(parameter.numel() for parameter in teacher.module.parameters())
    screen.fact("teacher", f"{name}, {size:,} parameters, none of them trained")


def _require_same_tokens(model: CausalModel, teacher: CausalModel, name: str, place: str) -> None:
    """Make sure that a token's number means the same to both.

    Raises:
        ModelError: it does not; names the first token that differs.
    """
    mine, theirs = model.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if mine == theirs:
        return
    different = sorted(word for word in mine.keys() | theirs.keys() if mine.get(word) != theirs.get(word))
    first = different[0]
    what = (
        f"The teacher {name} has another tokenizer: {len(different):,} tokens differ, such as {first!r} "
        f"({mine.get(first, 'none')} here, {theirs.get(first, 'none')} there)."
    )
    remedy = "take a teacher of the same family; or let it write answers, and train on them with objective: sft"
    raise ModelError(Problem(what, place, remedy))
