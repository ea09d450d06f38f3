"""Learning-rate schedules as closed forms of the step, so that nothing has to be stored to resume one."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.component import Component


class Schedule(Component):
    """Base of schedules: a factor on the learning rate for each step."""

    family: ClassVar[str] = "schedule"
    warms_up: ClassVar[bool] = True
    """The rate first rises over the recipe's warm-up steps; False for a schedule that has its own rise."""

    def factor(self, step: int, total: int, warmup: int) -> float:
        """Return the factor for optimizer step `step` (from 0) of `total`, after a linear warm-up of `warmup` steps."""
        if step < warmup:
            return (step + 1) / (warmup + 1)
        # A run that is all warm-up, or of one step, has nothing to decay over.
        progress = (step - warmup) / max(total - warmup, 1)
        return self.decay(min(progress, 1.0))

    def decay(self, progress: float) -> float:
        """Return the factor after warm-up, for progress from 0 to 1."""
        raise NotImplementedError


class Cosine(Schedule):
    """Half a cosine from the peak down to `min_ratio` of it (Loshchilov & Hutter 2016, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    """The rate at the end, as a share of the peak."""

    def decay(self, progress: float) -> float:
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


class Linear(Schedule):
    """A straight line from the peak down to `min_ratio` of it."""

    kind: Literal["linear"] = "linear"
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    """The rate at the end, as a share of the peak."""

    def decay(self, progress: float) -> float:
        return 1 - (1 - self.min_ratio) * progress


class Constant(Schedule):
    """The peak rate until the end, after warm-up."""

    kind: Literal["constant"] = "constant"

    def decay(self, progress: float) -> float:
        return 1.0


class SlantedTriangular(Schedule):
    """A short rise and a long fall, both straight lines (ULMFiT, Howard & Ruder 2018, arXiv:1801.06146, eq. 3).

    cut = ⌊T · cut_frac⌋;  p = t / cut while t < cut, else 1 − (t − cut) / (cut · (1/cut_frac − 1));
    factor = (1 + p · (ratio − 1)) / ratio.
    """

    kind: Literal["slanted_triangular"] = "slanted_triangular"
    warms_up: ClassVar[bool] = False
    cut_frac: float = Field(default=0.1, gt=0, lt=1)
    """The share of the steps in which the rate rises."""
    ratio: float = Field(default=32.0, ge=1)
    """How much smaller the lowest rate is than the peak."""

    def factor(self, step: int, total: int, warmup: int) -> float:
        # The paper's cut is rounded down: in short runs it would be 0, and the fall would end before the run and go on
        # below the lowest rate. Where T · cut_frac is a whole number, these are the paper's numbers exactly.
        cut = max(1, math.floor(total * self.cut_frac))
        share = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / self.cut_frac - 1))
        return (1 + max(share, 0.0) * (self.ratio - 1)) / self.ratio
