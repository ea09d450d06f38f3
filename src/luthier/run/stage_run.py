"""The parts of a stage at work, where it stands, and what it tells the user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.core.rundir import StageDir
from luthier.data.stream import Steps
from luthier.run.datasets import StageData
from luthier.run.online import Asking, updates_of
from luthier.run.screen import Screen
from luthier.train.engine import Engine
from luthier.train.hooks.trackers import Tracker

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel
    from luthier.run.config import Recipe


@dataclass
class Progress:
    """Where a stage stands; all of it goes into a checkpoint and comes back from it.

    Attributes:
        best_loss, best_step, best_train_loss: of the held-out measurement with the lowest loss so far; the last is the
            mean training loss before it.
        kept_step, kept_loss: of the best state in which everything general kept within max_drop.
        forgot: what became worse than that, when it first did; `forgot_for_good` where training ends because of it.
        losses_since, steps_since: training losses since the last measurement.
        overfit: the first measurement at which the training loss fell and the held-out loss rose.
    """

    train_seconds: float = 0.0
    train_cpu_seconds: float = 0.0
    first_step_cpu_seconds: float = 0.0
    tokens_total: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    kept_step: int | None = None
    kept_loss: float | None = None
    forgot: dict[str, object] | None = None
    forgot_for_good: bool = False
    losses_since: float = 0.0
    steps_since: int = 0
    best_train_loss: float | None = None
    overfit: dict[str, float] | None = None


@dataclass
class StageRun:
    """The parts of a stage at work.

    Attributes:
        before: what was measured before the first step.
    """

    recipe: Recipe
    folder: StageDir
    screen: Screen
    data: StageData
    model: LoadedModel
    engine: Engine
    stream: Steps
    progress: Progress = field(default_factory=Progress)
    trackers: list[Tracker] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    asking: Asking | None = None
    before: dict[str, dict] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        """Optimizer steps that follow on one batch of rows."""
        return updates_of(self.recipe.objective)

    @property
    def ends_with_best(self) -> bool:
        """Whether the run ends with the best state on held-out rows."""
        return self.recipe.resolved().final_checkpoint == "best"


def tell(stage: StageRun, event: str) -> None:
    """Say what happened on the screen, and keep it for the report."""
    stage.screen.note(event)
    stage.events.append(event)


def tell_faults(stage: StageRun) -> None:
    """Say which trackers were given up, and drop them."""
    for tracker in stage.trackers:
        if tracker.fault is not None:
            tell(stage, f"{tracker.name} is left out from here on ({tracker.fault}); metrics.jsonl has everything")
    stage.trackers = [tracker for tracker in stage.trackers if tracker.fault is None]
