"""Finished runs side by side: what each trained, what it cost, what it learnt and what it kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from luthier.core.rundir import RunDir, read_json
from luthier.run.numbers import byte_size, count, duration, percent, setting
from luthier.run.summary import Comparison, as_float, mapping, read_run

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "bitsandbytes")


@dataclass(frozen=True)
class Outcome:
    """One run's row.

    Attributes:
        peak_bytes: highest memory of the run's process, libraries included (on a GPU: what torch allocated there).
        train_seconds: time spent in optimizer steps.
        measures: by name, each with its metric and its values before and after training.
        refused: why the run was not made; failed: why it broke.
    """

    name: str
    run: str
    model: str = ""
    method: dict[str, object] = field(default_factory=dict)
    learning_rate: float | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    peak_bytes: int | None = None
    train_seconds: float | None = None
    steps: int | None = None
    tokens: int | None = None
    data: dict[str, object] = field(default_factory=dict)
    measures: dict[str, Comparison] = field(default_factory=dict)
    environment: dict[str, object] = field(default_factory=dict)
    refused: str = ""
    failed: str = ""

    @property
    def share(self) -> float | None:
        """The trained share of all parameters."""
        trained, whole = self.trainable_parameters, self.total_parameters
        return trained / whole if trained is not None and whole else None

    @property
    def is_run(self) -> bool:
        return not self.refused and not self.failed

    def as_dict(self) -> dict[str, object]:
        """Return the row for programs; measures as {metric, before, after}."""
        if not self.is_run:
            why = {"refused": self.refused} if self.refused else {"failed": self.failed}
            return {"name": self.name, **why}
        values = {k: v for k, v in asdict(self).items() if k not in ("environment", "measures", "refused", "failed")}
        measures = {
            n: {"metric": m.metric, "before": m.before, "after": m.after, "n": m.n} for n, m in self.measures.items()
        }
        return {**values, "trainable_share": self.share, "measures": measures}


@dataclass(frozen=True)
class Table:
    """Rows, and the machine they were made on."""

    rows: Sequence[Outcome]

    @property
    def measures(self) -> list[str]:
        """The names of all measures, in the order in which they first come."""
        return list(dict.fromkeys(name for row in self.rows for name in row.measures))

    @property
    def machine(self) -> dict[str, object]:
        """The machine and the versions of the first run."""
        found = next((row.environment for row in self.rows if row.environment), {})
        packages = mapping(found.get("packages"))
        keys = ("cpu", "cores", "threads", "memory_bytes", "gpus", "os", "python", "luthier", "commit")
        versions = {name: packages[name] for name in _PACKAGES if name in packages}
        return {**{key: found[key] for key in keys if key in found}, "packages": versions}

    @property
    def differences(self) -> list[str]:
        """What was not the same in all runs of a model, though a comparison wants it so."""
        said = []
        made = [row for row in self.rows if row.is_run]
        for model in dict.fromkeys(row.model for row in made):
            mine = [row for row in made if row.model == model]
            for what, values in (
                ("steps", {row.name: row.steps for row in mine}),
                ("tokens", {row.name: row.tokens for row in mine}),
                ("data", {row.name: repr(row.data) for row in mine}),
            ):
                if len(set(values.values())) > 1:
                    shown = "" if what == "data" else f" ({', '.join(f'{n} {v}' for n, v in values.items())})"
                    said.append(f"{what} differ between the runs of {model}{shown}")
        machines = {str(row.environment.get("cpu")) for row in made}
        if len(machines) > 1:
            said.append(f"the runs were made on several machines ({', '.join(sorted(machines))})")
        return said

    def as_dict(self) -> dict[str, object]:
        """Return the table for programs."""
        return {
            "rows": [row.as_dict() for row in self.rows],
            "machine": self.machine,
            "differences": self.differences,
        }

    def header(self) -> list[str]:
        """Return the titles of the columns."""
        several = [["model"]] if self._shows_models else []
        fixed = ["trained", "share", "learning rate", "peak memory", "seconds"]
        return [*(t for part in several for t in part), "variant", *fixed, *self.measures]

    def cells(self, row: Outcome) -> list[str]:
        """Return a row as texts, one for each column; a run that was not made has its reason in the last."""
        first = [row.model, row.name] if self._shows_models else [row.name]
        width = len(self.header()) - len(first)
        if not row.is_run:
            why = f"left out: {row.refused}" if row.refused else f"failed: {row.failed}"
            return [*first, *[""] * (width - 1), why]
        share = percent(row.share) if row.share is not None else ""
        return [
            *first,
            count(row.trainable_parameters) if row.trainable_parameters is not None else "",
            share,
            setting(row.learning_rate) if row.learning_rate is not None else "",
            byte_size(row.peak_bytes) if row.peak_bytes else "",
            duration(row.train_seconds) if row.train_seconds is not None else "",
            *(_change(row.measures.get(name)) for name in self.measures),
        ]

    def markdown(self) -> str:
        """Return the table with the machine below it."""
        header = self.header()
        lines = [_line(header), _line(["---"] * len(header)), *(_line(self.cells(row)) for row in self.rows)]
        steps = next((row.steps for row in self.rows if row.steps), None)
        budget = f"{steps:,} optimizer steps each, the same rows in the same order. " if steps else ""
        notes = "".join(f"\n\nNot equal: {said}." for said in self.differences)
        return (
            "\n".join(lines)
            + f"\n\n{budget}Measures before → after training. Peak memory is that of the whole process, libraries "
            + f"included; seconds are those of the optimizer steps.{self._starts()}{notes}\n\n{self._machine_line()}\n"
        )

    @property
    def _shows_models(self) -> bool:
        return len({row.model for row in self.rows if row.is_run}) > 1

    def _starts(self) -> str:
        """Return a remark where some runs were not the base model before their first step."""
        for model in {row.model for row in self.rows if row.is_run}:
            for name in self.measures:
                before = {r.measures[name].before for r in self.rows if r.model == model and name in r.measures}
                values = [value for value in before if value is not None]
                if values and max(values) - min(values) > 1e-3 * max(values):
                    return (
                        " Where a row's first value is not that of full, the method itself changes the model before "
                        "the first step (a quantised base, random prefixes)."
                    )
        return ""

    def _machine_line(self) -> str:
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


def outcome_of(run: RunDir, name: str) -> Outcome:
    """Return the row of a finished run, read from its folder.

    Raises:
        RunError: a file of the run cannot be read.
    """
    report, summary = read_json(run.report), read_run(run)
    rate = as_float(summary.recipe.get("learning_rate"))
    return Outcome(
        name=name,
        run=str(run.path),
        model=summary.model_name,
        method=dict(mapping(summary.recipe.get("method"))),
        learning_rate=rate if rate is not None else _default_rate(summary.recipe),
        trainable_parameters=_whole(report.get("trainable_parameters")),
        total_parameters=_whole(report.get("total_parameters")),
        peak_bytes=_whole(report.get("peak_bytes")),
        train_seconds=summary.train_seconds,
        steps=_whole(report.get("steps")),
        tokens=_whole(report.get("tokens_total")),
        data=read_json(run.fingerprint) if run.fingerprint.is_file() else {},
        measures={row.name: row for row in summary.comparisons},
        environment=dict(mapping(report.get("environment"))),
    )


def _default_rate(recipe: Mapping[str, object]) -> float | None:
    from luthier.core.component import kinds
    from luthier.methods.base import Method

    family = kinds("method").get(str(mapping(recipe.get("method")).get("kind")))
    return family.default_learning_rate if family is not None and issubclass(family, Method) else None


def _short(commit: str) -> str:
    """Return the first letters of a commit, and whether files differed from it."""
    name, plus, changes = commit.partition("+")
    return name[:12] + plus + changes


def _whole(value: object) -> int | None:
    number = as_float(value)
    return int(number) if number is not None else None


def _change(row: Comparison | None) -> str:
    return f"{row.text(row.before)} → {row.text(row.after)}" if row is not None else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
