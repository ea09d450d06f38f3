"""Numbers for a classifier: loss, accuracy and macro-F1 on held-out rows, and the classes of single texts.

Shape legend: N rows, S sequences of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.batch import Example
from luthier.data.labelled import encode_labelled
from luthier.data.records import Labelled, Record
from luthier.evaluate.measure import Score
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


@dataclass(frozen=True)
class Predicted:
    """What a classifier says of rows: (N, C) log-probabilities."""

    logps_NC: np.ndarray

    @property
    def classes_N(self) -> np.ndarray:
        """The likeliest class of each row."""
        return self.logps_NC.argmax(-1)

    def named(self, names: Sequence[str]) -> list[str]:
        """Return each row's class by name, with its probability."""
        return [f"{names[c]} ({np.exp(row[c]):.0%})" for row, c in zip(self.logps_NC, self.classes_N)]


def predict(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> Predicted:
    """Return the log-probabilities of every row's classes, without touching the training state."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))  # padded batches of one length hold no padding
    parts = []
    with model.evaluating():
        for group in (cut or Cut()).apply([examples[i] for i in order], padded=not model.packs):
            parts.append(model.class_logits(model.collate(group)).log_softmax(-1).double().cpu())
    logps_NC = torch.cat(parts).numpy()
    back = np.empty_like(logps_NC)
    back[order] = logps_NC
    return Predicted(back)


def class_scores(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> dict[str, Score]:
    """Return loss, accuracy and macro-F1, each row counting once whatever weighed in training."""
    predicted = predict(model, examples, cut)
    labels_N = np.array([int(example.extras["label"]) for example in examples])
    n = len(examples)
    loss = -float(predicted.logps_NC[np.arange(n), labels_N].mean())
    return {
        "loss": Score("loss", loss, n),
        "accuracy": Score("accuracy", float((predicted.classes_N == labels_N).mean()), n),
        "macro-F1": Score("macro_f1", macro_f1(labels_N, predicted.classes_N), n),
    }


def macro_f1(labels_N: np.ndarray, classes_N: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur, in the rows or in the answers."""
    scores = []
    for number in np.union1d(labels_N, classes_N):
        said, meant = classes_N == number, labels_N == number
        scores.append(2 * float((said & meant).sum()) / float(said.sum() + meant.sum()))
    return float(np.mean(scores))


def predict_texts(model: LoadedModel, records: Sequence[Record]) -> Predicted:
    """Return what a classifier says of texts, each cut at what the model can take."""
    texts = [(r.text, r.pair) for r in records if isinstance(r, Labelled)]
    examples = []
    for row in encode_labelled(model.tokenizer, texts, model.context_length):
        tokens = np.array(row.ids, dtype=np.int32)
        extras = {} if row.second is None else {"second": float(row.second)}
        examples.append(Example(tokens, np.zeros(len(tokens), dtype=np.float32), extras=extras))
    return predict(model, examples)
