"""Runs in processes of their own, several at once where cores and memory allow it.

Each has its own process, so that its peak memory is its own. Linux starts a child's peak at its parent's size, so the
process that compares stays small: it never imports torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from luthier.core.errors import Interrupted
from luthier.core.rundir import RunDir, read_json, write_atomic
from luthier.models.files import inspect_model, read_header, weight_files
from luthier.run.config import ModelSpec
from luthier.run.environment import available_cores, visible_gpus
from luthier.run.summary import is_locked_by_another
from luthier.run.yaml_lines import write_yaml

PATIENCE_SECONDS = 0.2
"""How often a running process is looked at."""
_LIBRARY_BYTES = 1_200_000_000
"""Memory of a run beside its model, before any of its kind has said how much it takes."""
_COPIES = 8
"""Copies of the weights that a run holds at most: weights, gradients, two moments in float32 of 16-bit files."""


@dataclass
class Job:
    """One run to be made, or gone on with.

    Attributes:
        name: what it is called.
        run: its folder.
        values: the recipe.
        notes: the folder of its recipe, its log and what it printed.
    """

    name: str
    run: RunDir
    values: Mapping[str, object]
    notes: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = field(default=0.0)

    @property
    def is_begun(self) -> bool:
        return self.run.resolved.is_file()

    @property
    def is_finished(self) -> bool:
        return self.run.report.is_file() and read_json(self.run.report).get("status") == "finished"

    @property
    def is_elsewhere(self) -> bool:
        """Whether a process that an earlier command left behind is still at work on the run."""
        return is_locked_by_another(self.run.path / ".lock")

    def start(self) -> None:
        """Start the process."""
        recipe = self._note(".yaml")
        write_atomic(recipe, write_yaml(self.values))
        words = ["resume", str(self.run.path)] if self.is_begun else ["train", str(recipe)]
        self.started = time.monotonic()
        with self._note(".log").open("ab") as log, self._note(".said.json").open("wb") as said:
            # In a session of its own: Ctrl-C reaches it once, through `stop`, and not from the terminal as well.
            self.process = spawn([*words, "--json"], said, log)

    def stop(self) -> None:
        """Ask the process to save itself and leave."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        """Return whether the run has ended; one left behind by an earlier command goes on once it has let go."""
        if self.process is not None:
            return self.process.poll() is not None
        if self.is_elsewhere:
            return False
        if self.is_finished:
            return True
        self.start()
        return False

    def failure(self) -> str:
        """Return why the process broke; empty where it did not."""
        assert self.process is not None
        if self.process.returncode == 0:
            return ""
        return _reason(self._note(".said.json")) or f"see {self._note('.log')}"

    def _note(self, ending: str) -> Path:
        path = self.notes / f"{self.name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def spawn(words: Sequence[str], said: IO[bytes], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the program in a process of its own, with its two streams in files."""
    return subprocess.Popen([sys.executable, "-m", "luthier", *words], stdout=said, stderr=log, start_new_session=True)


def run_all(
    jobs: Sequence[Job],
    workers: int,
    starts: Callable[[Job], None],
    ends: Callable[[Job, str], None],
    need_bytes: Callable[[], float] = lambda: 0.0,
) -> None:
    """Make all runs, at most `workers` at once, in their order.

    Args:
        starts: hears of each run that starts.
        ends: hears of each run that ended, with why it failed or an empty text.
        need_bytes: the memory that another run is expected to need while others are at work.

    Raises:
        Interrupted: the user stopped it; the runs have saved themselves.
    """
    waiting, working = list(jobs), []
    with interruptible():
        try:
            while waiting or working:
                while waiting and _has_room(len(working), workers, need_bytes()):
                    job = waiting.pop(0)
                    starts(job)
                    working.append(job)
                    if not job.is_elsewhere:
                        job.start()
                time.sleep(PATIENCE_SECONDS)
                for job in list(working):
                    if job.has_ended():
                        working.remove(job)
                        if job.process is not None and job.process.returncode == Interrupted.exit_code:
                            raise KeyboardInterrupt  # somebody stopped the run itself
                        ends(job, "" if job.process is None else job.failure())
        except KeyboardInterrupt:
            stop_all(working)
            names = ", ".join(job.name for job in working)
            raise Interrupted(f"Stopped{f' at {names}' if names else ''}.") from None


def stop_all(jobs: Sequence[Job]) -> None:
    """Ask all processes to save themselves, and wait until they have."""
    for job in jobs:
        job.stop()
    for job in jobs:
        if job.process is not None:
            job.process.wait()


def _has_room(working: int, workers: int, need: float) -> bool:
    if not working:
        return True
    free = available_memory()
    return working < workers and (free is None or free > need)


def available_memory() -> int | None:
    """Return the bytes that can still be filled, on Linux; a container's limit counts."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{n}").read_text().strip() for n in ("max", "current"))
    except OSError:
        return free
    return free if not limit.isdigit() or free is None else min(free, int(limit) - int(used))


def usual_workers(models: Sequence[ModelSpec]) -> int:
    """Return how many runs at once do not get into each other's way: cores, by the threads that a run uses.

    A small model computes in one thread anyway (`core.threads`), so what a run computes does not depend on it.
    """
    if visible_gpus():
        return 1
    cores = available_cores()
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(said) if said.isdigit() and int(said) else max(map(_threads, models), default=cores)
    return max(1, cores // max(threads, 1))


def expected_bytes(models: Sequence[ModelSpec]) -> float:
    """Return the memory that a run may need, before one has said it."""
    stored = [inspect_model(spec.path, None)[0].stored_bytes for spec in models]
    return _LIBRARY_BYTES + _COPIES * max(stored, default=0)


def _threads(spec: ModelSpec) -> int:
    """Return the threads that a model will use, by the sizes in its files; all there are where these are unknown."""
    from luthier.core.threads import threads_for

    facts, _ = inspect_model(spec.path, None)
    cores = available_cores()
    if facts.folder is None or facts.parameters is None:
        return cores
    sizes = []
    for name in weight_files(facts.folder):
        header = read_header(facts.folder / name) if name.endswith(".safetensors") else {}
        shapes = (entry["shape"] for key, entry in header.items() if key != "__metadata__")
        sizes += [_product(shape) for shape in shapes if len(shape) >= 2]
    return threads_for(sizes, cores) if sizes else cores


def _product(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _reason(said: Path) -> str:
    try:
        printed = json.loads(said.read_text(encoding="utf-8"))
        return " ".join(problem["what"] for problem in printed["error"]["problems"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a polite end (SIGTERM, a closed terminal) stop the runs as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in (signal.SIGTERM, signal.SIGHUP):
        try:
            before[name] = signal.signal(name, stop)
        except ValueError:  # not in the main thread: a program that embeds this handles its own signals
            break
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
