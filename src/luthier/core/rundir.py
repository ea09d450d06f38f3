"""Every file name of a run, in one place.

    runs/NAME/  recipe.yaml  resolved.json  environment.json  plan.json  report.html  report.json
                data/{fingerprint.json, doctor.json, examples.html}
      00-sft/   method.json  metrics.jsonl  samples.jsonl  eval.json  log.txt  checkpoints/step-000200/{…, DONE}

Report, resume, export and chat read the folder, never a live object. Whatever a reader could take for good is written
beside its place, synced, and renamed: a torn file is never read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import Problem, RunError

RESOLVED = "resolved.json"
"""In a run: the recipe with every default; a folder is a run from the moment this file is in it."""
PIPELINE = "pipeline.json"
"""In a run of several stages: their names; each stage's folder holds what a run of one stage holds."""
STATE = "trainer_state.json"
"""In a checkpoint: where the run stood, and which base model it belongs to."""


@dataclass(frozen=True)
class StageDir:
    """The folder of one stage inside a run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def eval(self) -> Path:
        return self.path / "eval.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def method(self) -> Path:
        """The method with everything decided that it decided from the data."""
        return self.path / "method.json"

    @property
    def labels(self) -> Path:
        """The classes of a classifier, in the order of its logits."""
        return self.path / "labels.json"

    @property
    def features(self) -> Path:
        """What a frozen backbone says of every row, where only a head is trained."""
        return self.path / "features.safetensors"

    @property
    def start(self) -> Path:
        """What the stage takes over from an earlier one."""
        return self.path / "start.json"

    @property
    def reference(self) -> Path:
        """Log-probabilities of the data under the model that the stage starts from."""
        return self.path / "reference.safetensors"

    @property
    def frozen_states(self) -> Path:
        """What frozen blocks gave for each row; there while the run trains."""
        return self.path / "frozen_states"

    @property
    def adapters(self) -> Path:
        """Where a vLLM server finds the adapter that is to write answers; there while the run trains."""
        return self.path / "adapters"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint taken after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:06d}"

    def complete_checkpoints(self) -> list[Path]:
        """Return the finished checkpoints, oldest first. A folder without DONE was torn and does not count."""
        numbered = ((p.name.removeprefix("step-"), p) for p in self.checkpoints.glob("step-*"))
        found = [(int(number), p) for number, p in numbered if number.isdecimal() and (p / "DONE").is_file()]
        return [p for _, p in sorted(found)]

    def read_metrics(self) -> Iterator[dict[str, float]]:
        """Yield the rows of metrics.jsonl; a torn last line (the process was killed while writing) is left out."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                return
            if not isinstance(row, dict):
                return
            yield row


@dataclass(frozen=True)
class RunDir:
    """The folder of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        return self.path / RESOLVED

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def fingerprint(self) -> Path:
        return self.path / "data" / "fingerprint.json"

    @property
    def doctor(self) -> Path:
        """What a quick look at the data found before the run."""
        return self.path / "data" / "doctor.json"

    @property
    def examples_page(self) -> Path:
        return self.path / "data" / "examples.html"

    @property
    def report_page(self) -> Path:
        return self.path / "report.html"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def pipeline(self) -> Path:
        """In a run of several stages: which they are. Each of their folders is a run of its own."""
        return self.path / PIPELINE

    @property
    def is_stage(self) -> bool:
        """Whether this is one stage of a run of several."""
        return (self.path.parent / PIPELINE).is_file()

    def stage(self, index: int, name: str) -> StageDir:
        return StageDir(self.path if self.is_stage else self.path / f"{index:02d}-{name}")

    def stages(self) -> list[StageDir]:
        """Return the stage folders that exist, in order."""
        if self.is_stage:
            return [StageDir(self.path)]
        return [StageDir(p) for p in sorted(self.path.glob("[0-9][0-9]-*")) if p.is_dir()]

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return an existing run.

        Raises:
            RunError: there is no run in that folder.
        """
        run = cls(last_stage(path))
        if not run.resolved.is_file():
            beside = sorted(p.parent.name for p in path.parent.glob(f"*/{RESOLVED}")) if path.parent.is_dir() else []
            remedy = f"runs there: {', '.join(beside)}" if beside else "start one with `luthier train recipe.yaml`"
            raise RunError(Problem("This folder holds no run (no resolved.json).", where=str(path), remedy=remedy))
        return run


def last_stage(path: Path) -> Path:
    """Return the folder of the last stage that has begun, for a run of several; else the path itself."""
    if not (path / PIPELINE).is_file():
        return path
    begun = [stage.path for stage in RunDir(path).stages() if (stage.path / RESOLVED).is_file()]
    return begun[-1] if begun else path


def final_checkpoint(run: RunDir) -> Path:
    """Return the checkpoint that is the run's result: what the report names, else the best or the newest so far.

    Raises:
        RunError: there is no complete checkpoint yet.
    """
    run = RunDir(last_stage(run.path))
    named = read_json(run.report).get("final_checkpoint") if run.report.is_file() else None
    if isinstance(named, str) and (run.path / named / "DONE").is_file():
        return run.path / named
    complete = {c.name: c for stage in run.stages() for c in stage.complete_checkpoints()}
    if not complete:
        remedy = f"let it train: luthier resume {run.path}"
        raise RunError(Problem("The run has no complete checkpoint yet.", str(run.path), remedy))
    newest = list(complete.values())[-1]
    best = read_json(newest / STATE).get("best_step")
    return complete.get(StageDir(run.path).checkpoint(best).name, newest) if isinstance(best, int) else newest


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True) if beside.parent.is_dir() else None
        raise disk_error(path, error) from error


def read_json(path: Path) -> dict[str, object]:
    """Return the mapping that a JSON file of a run holds.

    Raises:
        RunError: the file is missing or was changed by hand into something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "put the file back from a copy, or start a new run"
        raise RunError(Problem(f"The file cannot be read: {error}.", str(path), remedy)) from error
    if not isinstance(value, dict):
        raise RunError(Problem("The file holds no JSON object.", str(path), "put it back from a copy"))
    return value


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def settle_files(folder: Path) -> None:
    """Give every file in a folder the mode that new files have here, and bring it onto the disk.

    safetensors writes its files for their owner alone (0600), which nobody else in a team could then open.
    """
    mode = folder.stat().st_mode & 0o666
    for file in folder.iterdir():
        file.chmod(mode)
        sync(file)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_DISK_CODES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ENOTDIR}
    | {errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}
)


def disk_fault(path: Path, error: Exception) -> RunError | None:
    """Return the user's message if an exception means that the disk did not take a file; None if it means another.

    safetensors and tokenizers report a full disk through exceptions of their own, with the system's words in them.
    """
    if isinstance(error, OSError) and error.errno in _DISK_CODES:
        return disk_error(Path(error.filename) if isinstance(error.filename, str) else path, error)
    found = re.search(r"\(os error (\d+)\)", str(error))
    return disk_error(path, OSError(int(found[1]), os.strerror(int(found[1])))) if found else None


def disk_error(path: Path, error: OSError) -> RunError:
    """Return the user's message for a failed write: how much is free, and what to do."""
    what, remedy = error.strerror or str(error), "check the folder's permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        home = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
        what += f" ({shutil.disk_usage(home).free / 2**20:,.0f} MiB free)"
        remedy = "free some space"
    elif error.errno == errno.EFBIG:
        remedy = "raise the limit on the size of a file (ulimit -f)"
    return RunError(Problem(f"Cannot write: {what}.", str(path), f"{remedy}, or choose another place"))
