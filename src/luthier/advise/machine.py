"""The machine that training would run on: told by a flag such as `2x24GB`, or looked at."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from luthier.advise.situation import GIB, Machine
from luthier.core.errors import Problem, UserError

_SIZE = re.compile(r"(?:(\d+)\s*[x×*]\s*)?(\d+(?:\.\d+)?)\s*(g|gb|gib|t|tb|m|mb)?", re.IGNORECASE)
_UNIT = {"m": 2**20, "g": GIB, "t": 2**40}
# What cards of such a size sustain in training (about 40 % of their dense bfloat16 peak): RTX 3060, A4000, 4090, A6000,
# A100, H100 and beyond.
_SUSTAINED = ((10, 1.0e13), (14, 2.0e13), (20, 3.5e13), (36, 6.0e13), (60, 9.0e13), (90, 1.6e14), (1e9, 3.5e14))
# A core of today's servers with AVX2 in float32, measured with matrices of a thousand rows.
_PER_CORE = 3.0e10


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Return (devices, bytes of each) of a text such as `24GB` or `2x24GB`. A card's GB are GiB.

    Raises:
        UserError: it is no such size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[2]) <= 0 or found[1] == "0":
        what = f'"{text}" is no amount of memory.'
        raise UserError(Problem(what, f"luthier advise {option}", "write it like 24GB, or 2x24GB for two cards"))
    unit = _UNIT[(found[3] or "g")[0].lower()]
    return int(found[1] or 1), int(float(found[2]) * unit)


def gpu(text: str) -> Machine:
    """Return the machine of a flag such as `24GB` or `4x80GB`."""
    devices, size = parse_size(text, "--gpu")
    return Machine("gpu", size, devices, _sustained(size))


def cpu(memory: str | None = None) -> Machine:
    """Return this machine without a GPU, or one with so much memory."""
    if memory is not None:
        return Machine("cpu", parse_size(memory, "--memory")[1], 1, _PER_CORE * _cores())
    return Machine("cpu", _memory(), 1, _PER_CORE * _cores(), "this machine")


def look() -> Machine:
    """Return this machine: its GPUs where there are any, else its processor."""
    sizes = _gpus()
    if not sizes:
        return cpu()
    return Machine("gpu", min(sizes), len(sizes), _sustained(min(sizes)), "this machine")


def _sustained(size: int) -> float:
    return next(flops for gib, flops in _SUSTAINED if size / GIB <= gib)


def _gpus() -> list[int]:
    """Return the bytes of each GPU: as torch sees them where it is loaded, else as nvidia-smi lists them."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) * 2**20 for line in done.stdout.split() if line.isdigit()]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory() -> int:
    if sys.platform == "win32":
        return 16 * GIB
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="utf-8") as stream:
            limit = stream.read().strip()
    except OSError:
        limit = ""
    return min(total, int(limit)) if limit.isdigit() else total
