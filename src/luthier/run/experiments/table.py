"""The rows of a comparison as a table: for the terminal, as markdown, and for programs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.run.experiments.cell import Cell, Measured
from luthier.run.experiments.file import Budget
from luthier.run.experiments.outcome import Outcome
from luthier.run.experiments.ranking import COSTS, Standing, front, quality_of, retained_of, standings
from luthier.run.experiments.statistics import Spread
from luthier.run.numbers import byte_size, count, duration, number, percent, setting
from luthier.run.summary import Comparison, as_float, mapping

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "bitsandbytes")


@dataclass(frozen=True)
class Plan:
    """What the rows have in common.

    Attributes:
        quality, retained: the measures that the file names.
        left_out: measures that are not the same for all cells, so that they are not shown.
    """

    title: str = "Runs"
    budget: Budget | None = None
    quality: str = ""
    retained: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Table:
    """Rows, and the machine they were made on."""

    rows: Sequence[Cell]
    plan: Plan = Plan()

    @classmethod
    def of_runs(cls, runs: Sequence[Outcome]) -> Table:
        """Return the table of runs that exist, a row for each."""
        return cls([Cell(run.name, [run]) for run in runs])

    @property
    def measures(self) -> list[str]:
        """The names of all measures that are shown, in the order in which they first come."""
        names = dict.fromkeys(name for row in self.rows for name in row.measures)
        return [name for name in names if name not in self.plan.left_out]

    @functools.cached_property
    def retained(self) -> str:
        """The measure of what the model could do before; empty where there is none."""
        return retained_of(self.measures, self.plan.retained)

    @functools.cached_property
    def quality(self) -> str:
        """The measure that the rows are ranked by; empty where nothing is measured, or not on the same cases."""
        name = quality_of(self.measures, self.plan.quality, self.retained)
        return "" if name in self.uneven_measures else name

    @functools.cached_property
    def standings(self) -> dict[str, Standing]:
        """How each row stands against the best of its model; empty for a single row."""
        found = standings(self.rows, self.quality) if self.quality else {}
        return found if len(found) > 1 else {}

    @functools.cached_property
    def fronts(self) -> dict[str, list[str]]:
        """The rows that are worth their cost, by what they cost."""
        return {cost: front(self.rows, self.quality, price) for cost, price in COSTS.items()} if self.quality else {}

    @property
    def uneven_measures(self) -> list[str]:
        """Measures that were taken on another number of cases in some runs."""
        return [name for name in self.measures if len(self._case_counts(name)) > 1]

    def _case_counts(self, name: str) -> set[int | None]:
        return {run.measures[name].n for row in self.rows for run in row.runs if name in run.measures}

    @property
    def machine(self) -> dict[str, object]:
        """The machine and the versions of the first run."""
        found = next((run.environment for row in self.rows for run in row.runs if run.environment), {})
        packages = mapping(found.get("packages"))
        keys = ("cpu", "cores", "threads", "memory_bytes", "gpus", "os", "python", "luthier", "commit")
        versions = {name: packages[name] for name in _PACKAGES if name in packages}
        return {**{key: found[key] for key in keys if key in found}, "packages": versions}

    @property
    def differences(self) -> list[str]:
        """What was not the same in all runs of a model, though a comparison wants it so."""
        said = []
        runs = [(row, run) for row in self.rows for run in row.runs]
        for model in dict.fromkeys(row.model for row in self.rows if row.runs):
            mine = [(row, run) for row, run in runs if row.model == model]
            if self.plan.budget is None:
                said += [text for what in ("steps", "tokens", "data") for text in _unequal(what, mine, model)]
            else:
                said += _off_budget(self.plan.budget, mine, model)
        machines = {str(run.environment.get("cpu")) for _, run in runs}
        if len(machines) > 1:
            said.append(f"the runs were made on several machines ({', '.join(sorted(machines))})")
        return said + [f"{name} was measured on different numbers of cases" for name in self.uneven_measures]

    def as_dict(self) -> dict[str, object]:
        """Return the table for programs: one row for each cell."""
        return {
            "rows": [self.row_dict(row) for row in self.rows],
            "quality": self.quality or None,
            "retained": self.retained or None,
            "budget": None if self.plan.budget is None else {self.plan.budget.unit: self.plan.budget.amount},
            "pareto": self.fronts,
            "machine": self.machine,
            "differences": self.differences,
        }

    def row_dict(self, row: Cell) -> dict[str, object]:
        """Return one row for programs; a measure as {metric, before, after, n, interval, values}."""
        first = row.first
        told: dict[str, object] = {"refused": row.refused} if row.refused else {}
        if row.failures:
            told = {"failed": " ".join(dict.fromkeys(row.failures)), "failures": len(row.failures)}
        if first is None:
            return {"name": row.name, "changes": dict(row.changes), **told}
        measures = {name: row.measures[name].as_dict() for name in row.measures if name in self.measures}
        standing = self.standings.get(row.name)
        return {
            "name": row.name,
            "changes": dict(row.changes),
            "run": first.run,
            "runs": [run.run for run in row.runs],
            "seeds": [run.seed for run in row.runs],
            "n_seeds": len(row.runs),
            "model": row.model,
            "method": first.method,
            "learning_rate": first.learning_rate,
            "trainable_parameters": first.trainable_parameters,
            "total_parameters": first.total_parameters,
            "trainable_share": row.share,
            "peak_bytes": row.peak_bytes,
            "train_seconds": _mean(row.seconds),
            "train_cpu_seconds": _mean(row.cpu_seconds),
            "steps": _mean(row.steps),
            "tokens": _mean(row.tokens),
            "seconds": _spread(row.seconds),
            "quality": _spread(row.measures[self.quality].after) if self.quality in row.measures else None,
            "retained": _spread(row.measures[self.retained].after) if self.retained in row.measures else None,
            "versus_best": None if standing is None else standing.as_dict(),
            "pareto": [cost for cost, names in self.fronts.items() if row.name in names],
            "data": first.data,
            "measures": measures,
            **told,
        }

    def header(self) -> list[str]:
        """Return the titles of the columns."""
        fixed = ["trained", "share", "learning rate", "peak memory", "seconds"]
        against = ["against the best"] if self.standings else []
        return [*(["model"] if self._shows_models else []), "variant", *fixed, *self.measures, *against]

    def cells(self, row: Cell) -> list[str]:
        """Return a row as texts, one for each column; one without a run has its reason in the last."""
        name = row.name if row.seeds == 1 else f"{row.name} ({len(row.runs)} of {row.seeds} seeds)"
        name = f"{row.name} ({row.seeds} seeds)" if len(row.runs) == row.seeds > 1 else name
        head = [row.model, name] if self._shows_models else [name]
        width = len(self.header()) - len(head)
        run = row.first
        if run is None:
            return [*head, *[""] * (width - 1), row.why]
        texts = [
            count(run.trainable_parameters) if run.trainable_parameters is not None else "",
            percent(row.share) if row.share is not None else "",
            setting(run.learning_rate) if run.learning_rate is not None else "",
            byte_size(row.peak_bytes) if row.peak_bytes else "",
            duration(row.seconds.mean) if row.seconds is not None else "",
            *(change_text(row.measures.get(name)) for name in self.measures),
        ]
        against = [self._against(row)] if self.standings else []
        texts += against
        if row.failures:
            texts[-1] = f"{texts[-1]}; {row.why}"
        return [*head, *texts]

    def markdown(self) -> str:
        """Return the table with the machine below it."""
        header = self.header()
        lines = [_line(header), _line(["---"] * len(header)), *(_line(self.cells(row)) for row in self.rows)]
        notes = "".join(f"\n\nNot equal: {said}." for said in self.differences)
        return "\n".join(lines) + f"\n\n{' '.join(self.remarks())}{notes}\n\n{self.machine_line()}\n"

    def remarks(self) -> list[str]:
        """Return what a reader has to know about the numbers, sentence by sentence."""
        said = []
        steps = next((row.steps.mean for row in self.rows if row.steps), None)
        if self.plan.budget is not None:
            said.append(f"{self.plan.budget.text} each.")
        elif steps and not any(text.startswith("steps differ") for text in self.differences):
            said.append(f"{steps:,.0f} optimizer steps each, the same rows in the same order.")
        said.append("Measures before → after training.")
        said += ["After ±: half the 95 % interval of the mean over seeds."] if self._has_seeds else []
        said.append(
            "Peak memory is that of the whole process, libraries included; seconds are those of the optimizer steps."
        )
        if self.standings and self._has_seeds:
            said.append(
                f"Against the best: {self.quality}, paired over the same seeds; what is not shown at 5 % by t-tests "
                "with Holm's correction is called no difference shown."
            )
        said += [f"{name} is left out: it is not the same measure for all." for name in self.plan.left_out]
        return said + self._starts()

    @property
    def _has_seeds(self) -> bool:
        return any(len(row.runs) > 1 for row in self.rows)

    @property
    def _shows_models(self) -> bool:
        return len({row.model for row in self.rows if row.runs}) > 1

    def _against(self, row: Cell) -> str:
        standing = self.standings.get(row.name)
        if standing is None:
            return ""
        if standing.difference is None or self.quality not in row.measures:
            return standing.verdict
        like, size = row.measures[self.quality].like, abs(standing.difference.mean)
        sign = "−" if standing.difference.mean < 0 else "+"
        shown = f"{sign}{_size(like, size)}" if size else "the same"
        return shown if standing.verdict == "one seed" else f"{shown}, {standing.verdict}"

    def _starts(self) -> list[str]:
        """Return a remark where some runs were not the base model before their first step."""
        for model in {row.model for row in self.rows if row.runs}:
            for name in self.measures:
                mine = [r for r in self.rows if r.model == model and name in r.measures]
                values = [start.mean for r in mine if (start := r.measures[name].before) is not None]
                if values and max(values) - min(values) > 1e-3 * max(values):
                    return [
                        "Where a row's first value is not that of full, the method itself changes the model before "
                        "the first step (a quantised base, random prefixes)."
                    ]
        return []

    def machine_line(self) -> str:
        """Return the machine and the versions in one line."""
        machine = self.machine
        gpus = ", ".join(str(mapping(g).get("name")) for g in machine.get("gpus") or [])  # type: ignore[union-attr]
        memory = as_float(machine.get("memory_bytes"))
        parts = [
            str(machine.get("cpu", "an unknown processor")),
            f"{machine.get('cores')} cores" if machine.get("cores") else "",
            byte_size(memory) if memory else "",
            gpus or "no GPU",
            f"Python {machine.get('python')}" if machine.get("python") else "",
            f"luthier {machine.get('luthier')}" if machine.get("luthier") else "",
            *(f"{name} {version}" for name, version in mapping(machine.get("packages")).items()),
            f"commit {_short(str(machine['commit']))}" if machine.get("commit") else "",
        ]
        return "Machine: " + ", ".join(part for part in parts if part) + "."


def change_text(measured: Measured | None) -> str:
    """Return a measure before and after, with half its interval over seeds."""
    if measured is None:
        return ""
    mean = measured.mean
    interval = measured.after.interval if measured.after is not None else None
    half = f" ± {_size(mean, (interval[1] - interval[0]) / 2)}" if interval is not None else ""
    return f"{mean.text(mean.before)} → {mean.text(mean.after)}{half}"


def _size(like: Comparison, size: float) -> str:
    """Return a width or a difference, in the two digits that mean anything."""
    return percent(size) if like.is_share else number(size, 2)


def _unequal(what: str, runs: Sequence[tuple[Cell, Outcome]], model: str) -> list[str]:
    """Return how something differs between a model's runs of one seed."""
    for seed in dict.fromkeys(run.seed for _, run in runs):
        mine = [(row.name, run) for row, run in runs if run.seed == seed]
        found = {"steps": lambda run: run.steps, "tokens": lambda run: run.tokens, "data": lambda run: repr(run.data)}
        values = {name: found[what](run) for name, run in mine}
        if len(set(values.values())) > 1:
            shown = "" if what == "data" else f" ({', '.join(f'{name} {value}' for name, value in values.items())})"
            return [f"{what} differ between the runs of {model}{shown}"]
    return []


def _off_budget(budget: Budget, runs: Sequence[tuple[Cell, Outcome]], model: str) -> list[str]:
    """Return which runs did not use their budget; tokens and seconds are used up to the step that passes them."""
    used = {"steps": lambda run: run.steps, "tokens": lambda run: run.tokens, "seconds": lambda run: run.train_seconds}
    if budget.unit not in used:
        return []
    off = []
    for row, run in runs:
        amount = used[budget.unit](run)
        if amount is None or not run.steps:
            continue
        step = 0.0 if budget.unit == "steps" else 3 * amount / run.steps
        if not budget.amount <= amount <= budget.amount + step:
            off.append(f"{row.name} {amount:,.0f}")
    return [f"{budget.unit} are not the budget's in some runs of {model} ({', '.join(off)})"] if off else []


def _mean(spread: Spread | None) -> float | int | None:
    if spread is None:
        return None
    whole = all(isinstance(value, int) for value in spread.values)
    return int(spread.mean) if whole and spread.mean == int(spread.mean) else spread.mean


def _spread(spread: Spread | None) -> dict[str, object] | None:
    return None if spread is None else spread.as_dict()


def _short(commit: str) -> str:
    """Return the first letters of a commit, and whether files differed from it."""
    name, plus, changes = commit.partition("+")
    return name[:12] + plus + changes


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
