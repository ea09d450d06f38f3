"""`luthier select DATA --best N --out FILE`: the rows most worth learning from, by a model's scores and by coverage."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from luthier.cli.doctor import WithModel, columns_of, open_reader
from luthier.cli.layout import print_facts
from luthier.cli.messages import print_json, stderr, stdout
from luthier.core.errors import DataError, Problem, UserError, did_you_mean
from luthier.core.rundir import disk_error
from luthier.data.readers import Row
from luthier.data.records import Conversation, PromptAnswer, Record
from luthier.data.spec import DataSpec
from luthier.doctor.base import SeenRow, place, seen
from luthier.doctor.checks.duplicates import digest
from luthier.doctor.examine import Diagnosis, records_of
from luthier.doctor.row_scores import Journal, score_rows
from luthier.doctor.selection import KINDS, By, Pool, Prefer, choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.doctor.with_model import Reader

FORMATS = "messages, sharegpt, alpaca, dolly, or a prompt with its answer"


@dataclass(frozen=True)
class Wish:
    """What is to be chosen.

    Attributes:
        best: a number of rows, or a share such as 10% or 0.1.
        by: scores, joined by commas.
        prefer: which perplexities are best.
    """

    best: str
    by: str = "ifd,diversity"
    prefer: Prefer = "middle"
    seed: int = 0

    def kinds(self) -> tuple[By, ...]:
        """Return the scores asked for.

        Raises:
            UserError: one of them is unknown, or random stands beside others.
        """
        words = [word.strip() for word in self.by.split(",") if word.strip()]
        for word in words:
            if word not in KINDS:
                what = f'There is no score "{word}".{did_you_mean(word, KINDS)}'
                raise UserError(Problem(what, "--by", f"choose among: {', '.join(KINDS)}"))
        if not words or ("random" in words and len(words) > 1):
            what = "--by names no score." if not words else "A random choice goes by nothing else."
            raise UserError(Problem(what, "--by", "write --by ifd,diversity, or --by random alone"))
        return tuple(kind for kind in KINDS if kind in words)

    def count(self, rows: int) -> int:
        """Return how many rows are kept of so many.

        Raises:
            UserError: it is no number of rows and no share.
        """
        try:
            number = float(self.best.removesuffix("%")) / (100 if self.best.endswith("%") else 1)
        except ValueError:
            number = 0.0
        is_share = self.best.endswith("%") or "." in self.best
        if not (0 < number < 1e12) or (is_share and number > 1) or (not is_share and number != int(number)):
            what = f'"--best {self.best}" is neither a number of rows nor a share.'
            raise UserError(Problem(what, "--best", "write --best 500, --best 10% or --best 0.1"))
        return min(rows, max(1, round(number * rows)) if is_share else int(number))


@dataclass
class _Gathered:
    """What one pass over the data gave: the rows to choose from, and why others are none."""

    pool: Pool
    found: Diagnosis
    copies: int = 0
    unscored: int = 0
    journal: Journal | None = None


def run(
    data: str,
    wish: Wish,
    out: Path,
    model: str = "starter",
    columns: str | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    chat_template: str | None = None,
    force: bool = False,
    json: bool = False,
) -> None:
    """Choose rows, write them as they stand and in their order, and beside them the score of every row.

    Raises:
        UserError: the wish cannot be understood, or the place is taken.
        DataError: the rows are not for learning answers.
    """
    by = wish.kinds()
    wish.count(1)
    scores_file = out.with_name(f"{out.name}.scores.jsonl")
    _require_place(out, data, force)
    spec = DataSpec(path=data, columns=columns_of(columns), limit=limit)
    _require_answers(spec)
    console = stderr()
    with console.status("reading …") as status:
        needs_model = bool({"perplexity", "ifd"} & set(by))
        reader = open_reader(WithModel(model, 1, chat_template), max_length) if needs_model else None
        journal = None if reader is None else Journal(out.with_name(f"{out.name}.journal.jsonl"), _head(reader))
        try:
            gathered = _gather(spec, reader, journal, "diversity" in by, lambda n: status.update(f"{n:,} rows"))
        finally:
            if journal is not None:
                journal.close()
        if not len(gathered.pool):
            remedy = "luthier doctor DATA says what is wrong with the rows"
            raise DataError(Problem("No row is left to choose from.", data, remedy))
        status.update("choosing …")
        chosen = choose(gathered.pool, wish.count(len(gathered.pool)), by, wish.prefer, wish.seed)
        status.update("writing …")
        _write(spec, gathered.pool, chosen.tolist(), out, scores_file)
    result = _result(gathered, len(chosen), by, out, scores_file)
    if json:
        print_json({**result, "data": data, "model": model if reader is not None else None, "seed": wish.seed})
        return
    _show(result, gathered, data, by, model if reader is not None else "")


def _head(reader: Reader) -> dict[str, object]:
    """Return what scores depend on besides the rows."""
    assert reader.model is not None
    template = str(reader.chat_template or reader.tokenizer.chat_template or "")
    return {"model": reader.model.fingerprint, "max_length": reader.longest, "template": template}


def _require_place(out: Path, data: str, force: bool) -> None:
    if out.suffix != ".jsonl":
        raise UserError(Problem("Rows are written as JSONL.", str(out), "give --out a name that ends with .jsonl"))
    if out.exists() and Path(data).exists() and out.samefile(data):
        raise UserError(Problem("The choice would overwrite the data.", str(out), "give --out another name"))
    if out.exists() and not force:
        raise UserError(Problem("The file exists already.", str(out), "give --out another name, or --force"))


def _require_answers(spec: DataSpec) -> None:
    """Refuse rows that hold no question with its answer, before a model is loaded.

    Raises:
        DataError: says what they are, and why that is nothing to choose from.
    """
    found = Diagnosis()
    first = next(iter(records_of(spec, None, None, found)), None)
    if first is None or isinstance(first[2], Conversation | PromptAnswer):
        return
    what = f"The rows are read as {found.format}; what is chosen is questions with their answers."
    remedy = f"give rows of {FORMATS}; if these are, say which column is which: --columns prompt=…,answer=…"
    raise DataError(Problem(what, first[2].source, remedy))


def _gather(
    spec: DataSpec, reader: Reader | None, journal: Journal | None, keeps_grams: bool, progress: Callable[[int], None]
) -> _Gathered:
    gathered = _Gathered(Pool(), Diagnosis(), journal=journal)
    known: set[bytes] = set()

    def fresh() -> Iterator[tuple[SeenRow, Record]]:
        for number, _, record in records_of(spec, "sft", None, gathered.found):
            row = seen(number, record)
            key = digest(row)
            if key in known:
                gathered.copies += 1
                continue
            known.add(key)
            yield row, record

    if reader is None or journal is None:
        for row, _ in fresh():
            gathered.pool.add(row.number, row.text, float("nan"), float("nan"), keeps_grams)
        return gathered
    for row, score in score_rows(fresh(), reader, journal, progress):
        if score is None:
            gathered.unscored += 1
        else:
            gathered.pool.add(row.number, row.text, score.mean, score.ifd, keeps_grams)
    return gathered


def _write(spec: DataSpec, pool: Pool, chosen: Iterable[int], out: Path, scores_file: Path) -> None:
    """Write the chosen rows as they stand, and the scores of all that could be chosen."""
    order = {pool.numbers[index]: place_in_order for place_in_order, index in enumerate(chosen, start=1)}
    at = {number: index for index, number in enumerate(pool.numbers)}
    with _atomic(out) as rows, _atomic(scores_file) as scores:
        for number, row, _ in records_of(spec, "sft", None, Diagnosis()):
            index = at.get(number)
            if index is None:
                continue
            if number in order:
                rows.write(jsonlib.dumps(row.value, ensure_ascii=False, default=str) + "\n")
            scores.write(jsonlib.dumps(_score_line(row, pool, index, order.get(number))) + "\n")


def _score_line(row: Row, pool: Pool, index: int, order: int | None) -> dict[str, object]:
    file, line = place(row.source)
    entry: dict[str, object] = {"file": file, "line": line, "kept": order is not None, "order": order}
    if pool.means[index] == pool.means[index]:
        entry |= {"loss": round(pool.means[index], 6), "ifd": round(pool.ifds[index], 6)}
    return entry


@contextmanager
def _atomic(path: Path) -> Iterator[TextIO]:
    """Open a file that appears whole or not at all."""
    part = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            yield stream
        part.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def _result(gathered: _Gathered, kept: int, by: Sequence[By], out: Path, scores_file: Path) -> dict[str, object]:
    left = Counter(gathered.found.removals.values())
    ifds = gathered.pool.ifds
    return {
        "rows": gathered.found.rows,
        "kept": kept,
        "by": list(by),
        "left_out": {
            "not_chosen": len(gathered.pool) - kept,
            "copies": gathered.copies,
            "unscored": gathered.unscored,
            **dict(left),
        },
        "ifd_of_1_or_more": sum(value >= 1 for value in ifds),
        "known_before": gathered.journal.reused if gathered.journal is not None else 0,
        "out": str(out),
        "scores": str(scores_file),
    }


def _show(result: dict, gathered: _Gathered, data: str, by: Sequence[By], model: str) -> None:
    console = stdout()
    words = {
        "not_chosen": "not among the best",
        "copies": "stand twice",
        "unscored": "without an answer that fits",
    }
    left = [f"{n:,} {words.get(k, k.replace('_', ' '))}" for k, n in result["left_out"].items() if n]
    facts = [
        ("data", f"{result['rows']:,} rows of {data}, read as {gathered.found.format}"),
        ("by", ", ".join(by) + (f", with {model}" if model else "")),
        ("kept", f"{result['kept']:,} rows, as they stand and in their order"),
        ("left out", ", ".join(left) or "nothing"),
    ]
    if result["ifd_of_1_or_more"]:
        count = f"{result['ifd_of_1_or_more']:,} rows"
        facts.append(("note", f"in {count} the question does not help with the answer (IFD of 1 or more)"))
    if result["known_before"]:
        facts.append(("note", f"{result['known_before']:,} scores were known from before"))
    if gathered.journal is not None and gathered.journal.was_other:
        facts.append(("note", "the scores of an earlier choice are of another model, length or template: made anew"))
    print_facts(console, facts)
    console.print(f"{result['out']}\n{result['scores']} has the score of every row")
