"""The recipe key `data`: where the rows are and, only if Luthier cannot see it, how to read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.core.errors import DataError, Problem, did_you_mean
from luthier.core.paths import locate

FormatName = Literal[
    "auto", "messages", "sharegpt", "alpaca", "dolly", "flan", "text", "labelled", "preference", "rated", "prompt"
]


class DataSpec(BaseModel):
    """Where the data are. The short form is the path alone: `data: my.jsonl`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str
    """A file (JSONL, JSON, CSV, TSV, Parquet, TXT, also as .gz), a folder of such files or one saved by `datasets`, a
    pattern such as "data/*.jsonl", or "starter:NAME" for data that ship with Luthier. Looked up in the recipe's folder,
    then in the working directory; a path typed on the command line the other way round."""

    format: FormatName = "auto"
    """How to read a row. "auto" recognises it from the columns and checks every row."""

    columns: dict[str, str | int] = {}
    """Which column plays which part, when the names are unusual: {prompt: Frage, answer: Antwort}. Numbers are
    positions, from 1, for a CSV or TSV file without a header line: {prompt: 1, answer: 2}."""

    split: str | None = None
    """Which split of a saved `datasets` folder to read. Without it: train, or the only one there is."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Read only the first rows."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


def starter_folder() -> Path:
    """Return the folder of the data that ship with Luthier."""
    return Path(__file__).parent.parent / "starter" / "data"


def resolve_path(path: str, base: Path | None = None) -> Path:
    """Return where `path` points: data that ship with Luthier, or a path in `base` or else in the working directory.

    Raises:
        DataError: no starter data of that name.
    """
    if path.startswith("starter:"):
        name = path.removeprefix("starter:")
        found = starter_folder() / f"{name}.jsonl"
        if not found.is_file():
            names = sorted(p.stem for p in starter_folder().glob("*.jsonl"))
            near = did_you_mean(name, names)
            raise DataError(
                Problem(f'There are no starter data "{name}".{near}', "data", f"choose one of: {', '.join(names)}")
            )
        return found
    return locate(path, (base, Path()) if base is not None else ())


def located_rows(spec: DataSpec, find: Callable[[str], Path]) -> DataSpec:
    """Return the spec with an absolute path; data that ship with Luthier keep their name."""
    return spec if spec.path.startswith("starter:") else spec.model_copy(update={"path": str(find(spec.path))})
