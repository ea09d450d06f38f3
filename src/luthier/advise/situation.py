"""What advice goes by: the model, the data, the machine and what is wanted, as plain values.

Nothing here is looked up; whoever fills these in (`model_profile`, `data_profile`, `machine`, the command line) notes
what was assumed, and advice says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Purpose = Literal[
    "style",
    "domain",
    "task",
    "classification",
    "alignment",
    "tasks",
    "domains",
    "languages",
    "verifiable",
    "prototype",
    "production",
]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
Form = Literal["conversation", "text", "labelled", "scored", "preference", "rated", "prompt"]
Quality = Literal["any", "good", "best"]
Where = Literal["here", "federated", "device"]
GIB = 2**30
FEW = 100
"""Rows up to which a task counts as few-shot."""
SOME = 1000
"""Rows that are enough for form and style: LIMA's (arXiv:2305.11206)."""
MANY = 100_000
"""Rows from which full fine-tuning pulls ahead of low-rank updates (arXiv:2405.09673)."""


@dataclass(frozen=True)
class ModelProfile:
    """The model, as far as its config.json or its name tells.

    Attributes:
        name: as a recipe names it.
        config: config.json as a mapping; of a model known by name alone, one of usual proportions.
        parameters: all of them.
        active: those that one token passes; fewer than all in a mixture of experts.
        known_by: where the sizes come from.
        talks: it was tuned on instructions, as its chat template or its name says.
        has_template: its tokenizer brings a chat template.
    """

    name: str
    config: Mapping[str, object]
    parameters: int
    active: int
    known_by: Literal["config.json", "name"]
    is_encoder: bool = False
    is_mixture: bool = False
    has_biases: bool = False
    talks: bool = False
    has_template: bool = False
    context: int | None = None

    @property
    def billions(self) -> float:
        return self.parameters / 1e9


@dataclass(frozen=True)
class DataProfile:
    """One file of rows.

    Attributes:
        path: as a recipe names it.
        form: what the rows are good for.
        seen: rows that were looked at closely; of a large file the first ones.
        unreadable: rows that could not be read.
        median_tokens, longest_tokens: of one row, estimated.
        languages: share of the rows by script, the largest first.
        duplicates: share of the rows seen that repeat an earlier one word for word.
        classes: how many labels there are.
        answer_column: a column with one right answer, where there is one.
        prompt_column: the column of the prompt; chosen_column: of the better answer, where both are plain text.
        is_chat: some rows are conversations, which need a chat template.
    """

    path: str
    form: Form
    format: str
    rows: int
    seen: int
    unreadable: int = 0
    median_tokens: int = 256
    longest_tokens: int = 512
    languages: Mapping[str, float] = field(default_factory=dict)
    duplicates: float = 0.0
    classes: int = 0
    answer_column: str | None = None
    prompt_column: str | None = None
    chosen_column: str | None = None
    is_chat: bool = False

    @property
    def good_rows(self) -> int:
        """Rows that say something new."""
        return round(self.rows * (1 - self.duplicates))

    @property
    def tokens(self) -> int:
        return self.rows * self.median_tokens


@dataclass(frozen=True)
class Machine:
    """Where training would run.

    Attributes:
        device_bytes: memory of one GPU, or the machine's where there is none.
        flops: sustained floating-point operations per second of one device, estimated.
        known_by: the flag, or a look at this machine.
    """

    kind: Literal["gpu", "cpu"]
    device_bytes: int
    devices: int = 1
    flops: float = 1e11
    known_by: Literal["flag", "this machine"] = "flag"

    @property
    def total_bytes(self) -> int:
        return self.device_bytes * self.devices


@dataclass(frozen=True)
class Wishes:
    """What it is for, and within which bounds.

    Attributes:
        private: the data must not leave those who hold them.
        on_device: training happens on the users' devices.
        hours: the deadline; None without one.
        variants: fine-tuned models that are to be served from one base.
        quality: any (a first impression will do), good, or best (as good as can be had).
        reward: how answers are checked: exact_match, or FILE.py:NAME.
        general: a file of rows that are not to be forgotten.
    """

    purposes: frozenset[Purpose] = frozenset()
    private: bool = False
    on_device: bool = False
    hours: float | None = None
    variants: int = 1
    quality: Quality = "good"
    reward: str | None = None
    general: str | None = None


@dataclass(frozen=True)
class Need:
    """What a method would need here.

    Attributes:
        parts: bytes by name on one device, with the smallest micro-batch, and checkpointing where it has to be.
        peak_bytes: their sum at the peak.
        sharded_bytes: the same where weights, gradients and optimizer are spread over all devices.
        checkpointing: activations are recomputed.
        trained: parameters that move.
        file_bytes: what one fine-tuned variant takes on disk.
        hours: for the epochs that the recipe asks for.
    """

    parts: Mapping[str, int]
    peak_bytes: int
    sharded_bytes: int
    checkpointing: bool
    trained: int
    file_bytes: int
    hours: float


@dataclass(frozen=True)
class Situation:
    """Everything that the rules may look at.

    Attributes:
        data: the files, in the order of training; may be empty.
        needs: by method.
        assumed: what was not told and not found, in words (English, Chinese).
    """

    model: ModelProfile
    data: tuple[DataProfile, ...]
    machine: Machine
    wishes: Wishes
    needs: Mapping[str, Need] = field(default_factory=dict)
    assumed: tuple[tuple[str, str], ...] = ()

    def wants(self, *purposes: Purpose) -> bool:
        """Return whether any of these purposes is asked for."""
        return not self.wishes.purposes.isdisjoint(purposes)

    def of_form(self, *forms: Form) -> tuple[DataProfile, ...]:
        """Return the files of these forms."""
        return tuple(data for data in self.data if data.form in forms)

    @property
    def rows(self) -> int:
        """Good rows of the stage that decides: what is learnt last, all its files together."""
        main = self.main
        return sum(d.good_rows for d in self.data if main is not None and d.form == main.form)

    @property
    def main(self) -> DataProfile | None:
        """The file that decides about the method: of answers, labels or pairs before raw text."""
        order: tuple[Form, ...] = ("labelled", "scored", "conversation", "preference", "rated", "prompt", "text")
        ranked = sorted(self.data, key=lambda d: (order.index(d.form), -d.rows))
        return ranked[0] if ranked else None

    @property
    def corpus_tokens(self) -> int:
        """Tokens of the raw text that is given, about."""
        return sum(data.tokens for data in self.of_form("text"))

    @property
    def classifies(self) -> bool:
        """Whether a class or a number is asked for, and no text."""
        return self.main is not None and self.main.form in ("labelled", "scored")

    @property
    def room(self) -> int:
        """Bytes of one device that training may fill; the rest is left to the system and to what is not foreseen."""
        return int(self.machine.device_bytes * 0.92)

    def fits(self, method: str) -> bool:
        """Return whether one device holds it."""
        return self.needs[method].peak_bytes <= self.room

    def fits_sharded(self, method: str) -> bool:
        """Return whether all devices together hold it."""
        return self.fits(method) or (self.machine.devices > 1 and self.needs[method].sharded_bytes <= self.room)

    def use(self, method: str) -> float:
        """Return the share of the memory that a method would fill, on one device or spread over all."""
        need = self.needs[method]
        sharded = not self.fits(method) and self.fits_sharded(method)
        return (need.sharded_bytes if sharded else need.peak_bytes) / self.machine.device_bytes
