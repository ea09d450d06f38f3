"""Which plots a run's metrics make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from markupsafe import Markup

from luthier.run import numbers
from luthier.run.kept import PREFIX
from luthier.run.plots import Chart, Series, line_chart, smooth
from luthier.run.summary import Curve

_KNOWN = {"step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens", "step_seconds"}
_TITLES = {"eval_gap": "held-out less training loss"}
_FIRST = {"reward": "mean", "kl": "nats per token", "entropy": "nats per token", "response_length": "tokens"}
"""What matters most where a model learns from its own answers, with its unit."""


def charts(curves: Mapping[str, Curve]) -> Iterator[Markup]:
    """Yield the plots of a stage: loss first, then the rate, the gradient, the speed, and whatever else there is."""
    marks = _epoch_marks(curves.get("epoch"))
    first = [key for key in _FIRST if key in curves]
    for key in first:
        yield line_chart(_other_chart(key, curves[key], curves.get(f"eval_{key}")))
    if "loss" in curves:
        unit = "" if first else "nats per token"  # a surrogate of rewards has no unit
        yield line_chart(Chart("Loss", _loss_series(curves), unit=unit, marks=marks))
    if "learning_rate" in curves:
        yield line_chart(
            Chart("Learning rate", (_plain("learning rate", curves["learning_rate"]),), scale="linear", from_zero=True)
        )
    if "grad_norm" in curves:
        yield line_chart(Chart("Gradient norm", _with_smooth(curves["grad_norm"]), unit="before clipping"))
    speed = _speed(curves)
    if speed is not None:
        yield line_chart(Chart("Speed", _with_smooth(speed), unit="tokens/s", text=numbers.count, from_zero=True))
    for key, curve in curves.items():
        is_shown = key in first or key.removeprefix("eval_") in first
        is_shown = is_shown or key.startswith(PREFIX)  # beside what was gained, in a section of its own
        if key not in _KNOWN and not is_shown and len(set(curve.values[:1000])) > 1:
            yield line_chart(_other_chart(key, curve))


def _other_chart(key: str, curve: Curve, held: Curve | None = None) -> Chart:
    words = _TITLES.get(key) or key.replace("_", " ")
    title = words[:1].upper() + words[1:] if len(words) > 3 else words.upper()
    if not key.endswith("_bytes"):
        return Chart(
            title, (*_with_smooth(curve), *(() if held is None else _held_out(held))), unit=_FIRST.get(key, "")
        )
    return Chart(
        title.replace("bytes", "memory"),
        (_plain("memory", curve),),
        text=numbers.byte_size,
        from_zero=True,
        tick_unit=1024.0 ** max(0, math.floor(math.log(max(float(curve.values.max()), 1.0), 1024))),
    )


def _loss_series(curves: Mapping[str, Curve]) -> tuple[Series, ...]:
    if "eval_loss" not in curves:
        return _with_smooth(curves["loss"])
    series = _with_smooth(curves["loss"], "training, ")
    return (*series, *_held_out(curves["eval_loss"]))


def _held_out(held: Curve) -> tuple[Series, ...]:
    lines = (Series("held-out", held.steps, held.values, "line", "second"),) if len(held.steps) > 1 else ()
    return (*lines, Series("held-out", held.steps, held.values, "dots", "second"))


def _with_smooth(curve: Curve, prefix: str = "") -> tuple[Series, ...]:
    """Return the raw curve drawn faintly under a smooth one (about 2% of the run); a short one alone."""
    finite = np.isfinite(curve.values)
    steps, values = curve.steps[finite], curve.values[finite]
    if len(values) < 20:
        return (Series(f"{prefix}each step", steps, values),)
    window = max(5, len(values) // 80) | 1
    raw = Series(f"{prefix}each step", steps, values, "faint")
    return raw, Series(f"{prefix}smoothed", steps, smooth(values, window))


def _plain(name: str, curve: Curve) -> Series:
    return Series(name, curve.steps, curve.values)


def _speed(curves: Mapping[str, Curve]) -> Curve | None:
    tokens, seconds = curves.get("tokens"), curves.get("step_seconds")
    if tokens is None or seconds is None or len(tokens.values) != len(seconds.values):
        return None
    counts = tokens.values
    # A column that only ever grows over many steps is a running total, not a count for each step.
    if len(counts) > 5 and np.all(np.diff(counts) > 0) and counts[-1] > 4 * counts[0]:
        counts = np.diff(counts, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Curve(tokens.steps, counts / seconds.values)


def _epoch_marks(epoch: Curve | None) -> tuple[tuple[float, str], ...]:
    if epoch is None or epoch.last < 1.5 or epoch.last > 12:
        return ()
    whole = np.floor(epoch.values[:-1] + 1e-9)
    ends = np.flatnonzero(np.diff(whole, prepend=whole[:1]) > 0)
    return tuple((float(epoch.steps[i]), f"epoch {int(whole[i])} ends") for i in ends)
