"""Numbers for a classifier: loss, accuracy and macro-F1 on held-out rows, and the classes of single texts.

Shape legend: N rows, S sequences of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from luthier.core.batch import Example
from luthier.data.labelled import encode_labelled, several
from luthier.data.records import Labelled, Record
from luthier.evaluate.measure import Score
from luthier.models.classifier import Classifier
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


@dataclass(frozen=True)
class Predicted:
    """What a classifier says of rows: (N, C) log-probabilities, of each class for itself if several may apply."""

    logps_NC: np.ndarray
    is_multi: bool = False

    @property
    def classes_N(self) -> np.ndarray:
        """The likeliest class of each row."""
        return self.logps_NC.argmax(-1)

    @property
    def applies_NC(self) -> np.ndarray:
        """Whether each class is likelier than not."""
        return self.logps_NC > np.log(0.5)

    def named(self, names: Sequence[str]) -> list[str]:
        """Return each row's class by name, with its probability; all that apply, if several may."""
        if self.is_multi:
            each = [
                [f"{names[c]} ({np.exp(row[c]):.0%})" for c in range(len(names)) if on[c]]
                for row, on in zip(self.logps_NC, self.applies_NC)
            ]
            return [", ".join(found) or "none" for found in each]
        return [f"{names[c]} ({np.exp(row[c]):.0%})" for row, c in zip(self.logps_NC, self.classes_N)]


def predict(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> Predicted:
    """Return the log-probabilities of every row's classes, without touching the training state."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))  # padded batches of one length hold no padding
    is_multi = isinstance(model, Classifier) and model.is_multi_label
    parts = []
    with model.evaluating():
        for group in (cut or Cut()).apply([examples[i] for i in order], padded=not model.packs):
            logits_SC = model.class_logits(model.collate(group))
            logps_SC = logsigmoid(logits_SC) if is_multi else logits_SC.log_softmax(-1)
            parts.append(logps_SC.double().cpu())
    logps_NC = torch.cat(parts).numpy()
    back = np.empty_like(logps_NC)
    back[order] = logps_NC
    return Predicted(back, is_multi)


def class_scores(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> dict[str, Score]:
    """Return loss, accuracy and macro-F1, each row counting once whatever weighed in training.

    Where several classes may apply, accuracy is the share of rows that are right in every class, and micro-F1 is there
    as well; a class applies when it is likelier than not.
    """
    predicted = predict(model, examples, cut)
    if predicted.is_multi:
        return _several_scores(predicted, examples)
    labels_N = np.array([int(example.extras["label"]) for example in examples])
    n = len(examples)
    loss = -float(predicted.logps_NC[np.arange(n), labels_N].mean())
    return {
        "loss": Score("loss", loss, n),
        "accuracy": Score("accuracy", float((predicted.classes_N == labels_N).mean()), n),
        "macro-F1": Score("macro_f1", macro_f1(labels_N, predicted.classes_N), n),
    }


def _several_scores(predicted: Predicted, examples: Sequence[Example]) -> dict[str, Score]:
    count, n = predicted.logps_NC.shape[1], len(examples)
    rows = [[float(np.asarray(e.extras[several(c)])) for c in range(count)] for e in examples]
    applies_NC = np.array(rows, dtype=np.float64) > 0
    against_NC = np.log(-np.expm1(np.minimum(predicted.logps_NC, -1e-12)))  # log(1 − p)
    said_NC = predicted.applies_NC
    right_C, meant_C, said_C = (said_NC & applies_NC).sum(0), applies_NC.sum(0), said_NC.sum(0)
    known_C = meant_C + said_C > 0
    each_C = 2 * right_C[known_C] / (meant_C + said_C)[known_C]
    return {
        "loss": Score("loss", -float(np.where(applies_NC, predicted.logps_NC, against_NC).mean()), n),
        "accuracy": Score("accuracy", float((said_NC == applies_NC).all(1).mean()), n),
        "micro-F1": Score("micro_f1", 2 * float(right_C.sum()) / max(float((meant_C + said_C).sum()), 1.0), n),
        "macro-F1": Score("macro_f1", float(each_C.mean()) if len(each_C) else 0.0, n),
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
    return predict(model, encoded_texts(model, records))


def encoded_texts(model: LoadedModel, records: Sequence[Record]) -> list[Example]:
    """Return texts as examples without labels."""
    texts = [(r.text, r.pair) for r in records if isinstance(r, Labelled)]
    examples = []
    for row in encode_labelled(model.tokenizer, texts, model.context_length):
        tokens = np.array(row.ids, dtype=np.int32)
        extras = {} if row.second is None else {"second": float(row.second)}
        examples.append(Example(tokens, np.zeros(len(tokens), dtype=np.float32), extras=extras))
    return examples
