"""What a stage has besides, whose data are the model's own answers: the reward, opened, and the prompts as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import Problem, UserError
from luthier.data.records import Asked
from luthier.objectives.base import Objective
from luthier.objectives.rollouts import Online
from luthier.rewards.base import Place, Scorer
from luthier.run.begin import read_beginning
from luthier.run.opened import open_target

if TYPE_CHECKING:
    from luthier.core.batch import Example
    from luthier.core.rundir import StageDir
    from luthier.models.loaded import LoadedModel
    from luthier.run.config import Recipe
    from luthier.train.engine import Engine
    from luthier.train.rollout import Writer
    from luthier.train.vllm import VllmServer


@dataclass(frozen=True)
class Asking:
    """A stage's reward and prompts.

    Attributes:
        asked: the prompts by their sources, which examples carry.
        server: what writes the answers in place of our own engine.
    """

    scorer: Scorer
    asked: Mapping[str, Asked]
    server: VllmServer | None = None

    def close(self) -> None:
        """Close what the reward and the server have open."""
        self.scorer.close()
        if self.server is not None:
            self.server.close()

    def iterate(self, engine: Engine, examples: Sequence[Example]) -> dict[str, float]:
        """Run one iteration over some prompts and return its metrics."""
        from luthier.train.rl import iterate

        return iterate(engine, self.scorer, self._prompts(examples), self._writer())

    def measure(self, engine: Engine, examples: Sequence[Example]) -> dict[str, float]:
        """Return the metrics of answers to prompts; nothing is trained."""
        from luthier.train.rl import measure_rollouts

        return measure_rollouts(engine, self.scorer, self._prompts(examples), self._writer())

    def scores(self, engine: Engine, examples: Sequence[Example]) -> dict[str, dict[str, object]]:
        """Return what the answers to held-out prompts are worth, for the table of before and after."""
        reward = self.measure(engine, examples)["reward"]
        return {"held-out reward": {"metric": "reward", "value": reward, "n": len(examples)}}

    def _writer(self) -> Writer:
        from luthier.train.rollout import written_here

        return self.server or written_here

    def _prompts(self, examples: Sequence[Example]) -> list:
        from luthier.train.rollout import Prompt

        return [Prompt(example.tokens, self.asked[example.source]) for example in examples]


def open_asking(recipe: Recipe, folder: StageDir, asked: Mapping[str, Asked]) -> Asking | None:
    """Open the reward of an objective that has one, and the server that writes its answers; nothing for others.

    Raises:
        UserError: what they need is not there.
    """
    objective = recipe.objective
    if not isinstance(objective, Online):
        return None
    place = Place(recipe.base or Path.cwd(), _open_model, folder.path / "rewards")
    server = None if objective.vllm is None else _open_server(objective.vllm, recipe, folder)
    try:
        return Asking(objective.reward.open(place), asked, server)
    except BaseException:
        if server is not None:
            server.close()
        raise


def _open_server(url: str, recipe: Recipe, folder: StageDir) -> VllmServer:
    """Find a vLLM server.

    Raises:
        UserError: it is not there, or could not be given all that is trained.
    """
    from luthier.train.vllm import VllmServer

    if read_beginning(folder).under:
        what = "The stage stands on an adapter that stays in memory, and a server has the base alone."
        remedy = "write adapter: merge for this stage, and serve the folder model/ of the stage before it"
        raise UserError(Problem(what, recipe.place("objective.vllm"), remedy))
    return VllmServer(url, folder.adapters)


def updates_of(objective: Objective) -> int:
    """Return the optimizer steps that follow on one batch of rows."""
    return objective.updates if isinstance(objective, Online) else 1


def _open_model(name: str) -> LoadedModel:
    return open_target(name)[0]
