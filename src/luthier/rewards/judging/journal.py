"""What was answered, on disk before anything goes on: nothing that was paid for is asked twice.

An append-only file of JSON lines, each synced before its answer counts. The key of a line is a hash of the question's
content, so a changed rubric, prompt, answer or model is another question, and an unchanged one is never asked again.
A line torn by a crash is cut off when the file is opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from luthier.core.errors import Problem, RunError
from luthier.rewards.judging.endpoint import Messages, Reply


def content_key(model: str, temperature: float, messages: Messages) -> str:
    """Return the key of a question: the model and every word that it is sent."""
    content = json.dumps([model, temperature, list(messages)], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class Journal:
    """Answers by key, in a file; without a path, in memory alone.

    Raises:
        RunError: another process writes to it, it holds something else, or the disk does not take it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        if path is not None:
            self._file = self._open(path)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """Return what was answered, if it was asked."""
        return self._replies.get(key)

    def once(self, key: str, ask: Callable[[], Reply]) -> tuple[Reply, bool]:
        """Return the answer to a question and whether it had to be asked; two threads never ask the same."""
        with self._lock:
            known = self._replies.get(key)
            lock = self._locks.setdefault(key, threading.Lock())
        if known is not None:
            return known, False
        with lock:
            known = self._replies.get(key)
            if known is not None:
                return known, False
            reply = ask()
            self._keep(key, reply)
            return reply, True

    def close(self) -> None:
        """Close the file and let others write to it."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _keep(self, key: str, reply: Reply) -> None:
        line = {"key": key, "text": reply.text, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
        with self._lock:
            if self._file is not None:
                try:
                    # Escaped, because an answer may hold half a surrogate pair, which UTF-8 cannot write.
                    self._file.write(json.dumps(line).encode("ascii") + b"\n")
                    self._file.flush()
                    os.fsync(self._file.fileno())
                except OSError as error:
                    what = f"An answer cannot be written down: {error.strerror}."
                    raise RunError(Problem(what, str(self.path), "free some space and run it again")) from error
            self._replies[key] = reply
            self._locks.pop(key, None)

    def _open(self, path: Path) -> IO[bytes]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
            _sync_names(path.parent)
        except OSError as error:
            raise RunError(Problem(f"The journal cannot be written: {error.strerror}.", str(path))) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            what = "Another process is writing to this journal."
            raise RunError(Problem(what, str(path), "wait until it has ended, or write elsewhere")) from error
        file.seek(0)
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                kept = json.loads(line)
                self._replies[kept["key"]] = Reply(str(kept["text"]), int(kept["tokens_in"]), int(kept["tokens_out"]))
            except (ValueError, KeyError, TypeError) as error:
                file.close()
                what = f"This line is no answer of a judge ({type(error).__name__})."
                remedy = "remove the line, or the file if its answers may be paid for again"
                raise RunError(Problem(what, f"{path}:{number}", remedy)) from error
            whole += len(line)
        file.truncate(whole)
        return file


def _sync_names(folder: Path) -> None:
    """Bring the names in a folder onto the disk, so that a new file is found after a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
