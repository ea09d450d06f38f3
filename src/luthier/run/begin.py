"""Where a stage begins when an earlier one hands its adapter on: what is folded under the model, what goes on training.

`start.json` in the stage's folder says it, with paths relative to that folder, so that the run can be moved.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.rundir import StageDir, read_json, write_json
from luthier.methods.base import Method

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


@dataclass(frozen=True)
class Beginning:
    """What a stage takes over.

    Attributes:
        under: checkpoints whose tensors are folded into the model, in this order.
        goes_on: the checkpoint whose tensors the stage's own method starts with.
    """

    under: tuple[Path, ...] = ()
    goes_on: Path | None = None


def write_beginning(folder: StageDir, start: Beginning) -> None:
    """Write down what a stage takes over."""

    def relative(path: Path) -> str:
        return os.path.relpath(path.resolve(), folder.path.resolve())

    goes_on = None if start.goes_on is None else relative(start.goes_on)
    write_json(folder.start, {"under": [relative(path) for path in start.under], "continue": goes_on})


def read_beginning(folder: StageDir) -> Beginning:
    """Return what a stage takes over: nothing, where no file says otherwise."""
    if not folder.start.is_file():
        return Beginning()
    kept = read_json(folder.start)
    under, goes_on = kept.get("under"), kept.get("continue")
    assert isinstance(under, list)
    paths = tuple((folder.path / str(path)).resolve() for path in under)
    return Beginning(paths, None if goes_on is None else (folder.path / str(goes_on)).resolve())


def lay_under(model: LoadedModel, folder: StageDir) -> None:
    """Fold what earlier stages trained into the model, before this stage's method is applied."""
    import torch

    from luthier.run.config import build_component

    for checkpoint in read_beginning(folder).under:
        method = build_component("method", read_json(StageDir(checkpoint.parents[1]).method))
        assert isinstance(method, Method)
        method.prepare(model.module)
        method.load(model.module, checkpoint)
        with torch.no_grad():
            model.module = method.merge(model.module)
        model.notes.append(f"The adapter of {checkpoint.parents[1].name} is folded into the model.")


def go_on_from(model: LoadedModel, method: Method, folder: StageDir) -> bool:
    """Give the stage's method the tensors of the stage before, where it goes on with them; return whether it does."""
    goes_on = read_beginning(folder).goes_on
    if goes_on is None:
        return False
    method.load(model.module, goes_on)
    return True
