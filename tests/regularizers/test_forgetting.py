"""Each regularizer does what it is for: a real small model that learns to tell stories backwards forgets less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from luthier.core.batch import Example
from luthier.data.load import load_records
from luthier.data.records import Record, Text
from luthier.data.render import Renderer
from luthier.data.spec import DataSpec
from luthier.data.stream import Stream
from luthier.evaluate.measure import held_out_loss
from luthier.methods.base import trainable
from luthier.methods.full import Full
from luthier.models.causal import CausalModel
from luthier.models.load import load_model
from luthier.regularizers.base import Regularizer
from luthier.regularizers.ewc import Ewc
from luthier.regularizers.kl import Kl
from luthier.regularizers.l2_sp import L2Sp
from luthier.train.fisher import fisher
from luthier.train.restraints import Restraint
from training import engine

STEPS, BATCH = 14, 6


@pytest.fixture(scope="module")
def stories() -> list[Text]:
    rows = load_records(DataSpec(path="starter:stories"), objective="lm").records
    return [row for row in rows if isinstance(row, Text)]


def rendered(model: CausalModel, records: Sequence[Record]) -> Sequence[Example]:
    return Renderer(model.tokenizer, objective_kind="lm", max_length=96).render_all(records).store


def story_loss(stories: list[Text], part: Regularizer | None = None, replayed: int = 0) -> tuple[float, float]:
    """The loss on stories before and after learning to read some of them backwards."""
    model = load_model("starter")
    assert isinstance(model, CausalModel)
    backwards = [Text(" ".join(s.text.split()[:24][::-1]), s.source) for s in stories if len(s.text.split()) > 8]
    narrow, general, held = rendered(model, backwards), rendered(model, stories[1::2]), rendered(model, stories[:20:2])
    made = engine(model, Full(), learning_rate=1e-3, total_steps=STEPS, keep_reference=True)
    importance = fisher(model, trainable(model.module), general[:8], seed=0) if isinstance(part, Ewc) else {}
    made = replace(made, regularizers=[] if part is None else [Restraint(part, importance)])
    before = held_out_loss(model, held).value
    rows, others = Stream(len(narrow), BATCH - replayed, 0), Stream(len(general), max(replayed, 1), 1)
    for step in range(STEPS):
        mixed = [narrow[int(i)] for i in rows.rows(step)]
        made.train_step(mixed + [general[others.at(step * replayed + i)] for i in range(replayed)])
    return before, held_out_loss(model, held).value


@pytest.fixture(scope="module")
def forgotten(stories: list[Text]) -> float:
    before, after = story_loss(stories)
    assert after - before > 0.3, "the narrow task makes the model forget"
    return after - before


@pytest.mark.parametrize(
    "part", [Kl(weight=0.5), L2Sp(weight=1.0), Ewc(data="rows", weight=3000.0)], ids=lambda part: part.kind
)
def test_a_model_that_is_held_forgets_less(part: Regularizer, stories: list[Text], forgotten: float) -> None:
    before, after = story_loss(stories, part)
    assert after - before < 0.7 * forgotten


def test_a_model_that_rehearses_forgets_less(stories: list[Text], forgotten: float) -> None:
    before, after = story_loss(stories, replayed=2)
    assert after - before < 0.3 * forgotten
