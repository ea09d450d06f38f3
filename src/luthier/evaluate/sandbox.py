"""Run a Python program that nobody has read: in a process of its own, with limits, in an empty folder.

What keeps it in: a fresh interpreter without the user's packages and environment; limits on processor time, memory,
file sizes and open files; a folder that is removed afterwards; a wall clock; and, where the system lets an ordinary
user have them (`unshare`), namespaces without a network and without other processes to see. This guards against
accidents and careless code, not against an attacker: for that, run the whole command in a container.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MEMORY_BYTES = 2**29
FILE_BYTES = 2**20
_PROGRAM = """
import os, resource, sys
seconds, memory, size, place = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for what, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, size),
                    (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (limit, limit))
word, _, source = sys.stdin.read().partition("\\n")
def run(source):
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
run(source)
with open(place, "w") as stream:
    stream.write(word)
sys.stdout.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Ran:
    """Whether a program came to its end without an error, and if not, why."""

    passed: bool
    why: str = ""


@functools.cache
def walls() -> tuple[str, ...]:
    """Return the command that takes network and other processes away, or nothing where the system has none."""
    found = shutil.which("unshare")
    if found is None or sys.platform != "linux":
        return ()
    command = (found, "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
    try:
        done = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if done.returncode == 0 else ()


def run_python(source: str, seconds: float = 5.0) -> Ran:
    """Run a program and say whether it came to its end.

    A word that the program does not know is written where it ends, so that leaving early does not count as passing.
    """
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="luthier-code-") as name:
        work, end = Path(name) / "work", Path(name) / "end"
        work.mkdir()
        limits = (str(max(1, round(seconds))), str(MEMORY_BYTES), str(FILE_BYTES), str(end))
        with (Path(name) / "errors").open("w+b") as errors:
            process = subprocess.Popen(
                [*walls(), sys.executable, "-I", "-S", "-c", _PROGRAM, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=work,
                env={"PATH": "/usr/bin:/bin", "HOME": str(work), "TMPDIR": str(work)},
                start_new_session=True,
            )
            try:
                process.communicate(f"{word}\n{source}".encode(), timeout=seconds + 2)
            except subprocess.TimeoutExpired:
                return Ran(False, f"not finished within {seconds:g} s")
            finally:
                _end(process)
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace").strip().splitlines()
        if end.is_file() and end.read_text(encoding="utf-8", errors="replace") == word:
            return Ran(True)
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL, 128 + signal.SIGKILL, 128 + signal.SIGXCPU):
            return Ran(False, f"used more than {seconds:g} s of processor time")
        return Ran(False, said[-1][:200] if said else f"left before its end (exit code {process.returncode})")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
