"""What people said, each line on disk before the next pair is shown.

An append-only file: an undo is a line as well, so nothing that was said is ever lost. A line that a crash tore is cut
off when the file is opened. Every line of an annotator has a number, and a line with a number that was written already
changes nothing: a key that is pressed twice, or a page that sends again, counts once.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from luthier.core.errors import Problem, RunError

Choice = Literal["a", "b", "tie", "skip"]
CHOICES = get_args(Choice)


@dataclass
class Said:
    """What one annotator said so far: `lines` written, and the pairs judged, in order."""

    lines: int = 0
    judged: dict[str, Choice] = field(default_factory=dict)
    last: tuple[str, str] = ("", "")


class Journal:
    """The judgements of all annotators.

    Raises:
        RunError: another process writes to it, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.people: dict[str, Said] = {}
        self._lock = threading.Lock()
        self._file = self._open(path)

    def said(self, annotator: str) -> Said:
        """Return what an annotator said so far."""
        return self.people.setdefault(annotator, Said())

    def add(self, annotator: str, number: int, pair: str, choice: str) -> bool:
        """Write a judgement or an undo down; return whether it is new.

        Args:
            number: how many lines of the annotator the page knows of; one that is there already is not written again.
            choice: a, b, tie, skip, or undo.
        """
        with self._lock:
            person = self.said(annotator)
            if number != person.lines:
                return False
            if choice == "undo" and not person.judged:
                return False
            if choice != "undo" and pair in person.judged:
                return False
            row = {"annotator": annotator, "number": number, "pair": pair, "choice": choice, "time": int(time.time())}
            whole = os.fstat(self._file.fileno()).st_size
            try:
                line = json.dumps(row).encode("ascii") + b"\n"
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file.fileno())
            except OSError as error:
                self._file.truncate(whole)  # what is half written would be taken for said after a restart
                what = f"The judgement cannot be written down: {error.strerror}."
                raise RunError(Problem(what, str(self.path), "free some space")) from error
            self._apply(row)
            return True

    def close(self) -> None:
        """Let others write to the file."""
        self._file.close()

    def _apply(self, row: dict) -> None:
        person = self.said(str(row["annotator"]))
        person.lines += 1
        if row["choice"] == "undo":
            person.judged.popitem()
        else:
            person.judged[str(row["pair"])] = row["choice"]
        person.last = (str(row["pair"]), str(row["choice"]))

    def _open(self, path: Path) -> io.FileIO:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b", buffering=0)
        except OSError as error:
            raise RunError(Problem(f"The judgements cannot be written: {error.strerror}.", str(path))) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            what = "Another process is writing to these judgements."
            raise RunError(Problem(what, str(path), "stop it first, or choose another --out")) from error
        file.seek(0)
        whole = 0
        for number, line in enumerate(file.readall().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                if row["choice"] not in (*CHOICES, "undo") or row["number"] != self.said(row["annotator"]).lines:
                    raise ValueError(row["choice"])
                self._apply(row)
            except (ValueError, KeyError, TypeError) as error:
                file.close()
                what = f"This line is no judgement ({type(error).__name__})."
                raise RunError(Problem(what, f"{path}:{number}", "put the file back, or remove the line")) from error
            whole += len(line)
        file.truncate(whole)
        return file
