"""Where a run takes place: the machine and the versions, written to environment.json at every start.

It must cost nothing: versions are read from package metadata, and torch is asked only if it is loaded already. Of the
environment variables only a fixed list is kept, and passwords inside addresses are taken out.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import luthier

if TYPE_CHECKING:
    from types import ModuleType

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "safetensors",
    "numpy",
    "pydantic",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "flash-attn",
    "liger-kernel",
    "deepspeed",
    "flwr",
    "tensorboard",
    "wandb",
    "mlflow",
)
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "PYTHONHASHSEED",
    "WANDB_MODE",
    "MLFLOW_TRACKING_URI",
    "LD_PRELOAD",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
)
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "neon", "asimd", "bf16", "sve")
_CREDENTIALS = re.compile(r"://[^/@\s]+@")


def collect_environment() -> dict[str, object]:
    """Return the machine, the versions and the variables that matter, as JSON would write them."""
    threads, gpus = _torch_view()
    return {
        "luthier": luthier.__version__,
        "commit": checkout_commit(Path(luthier.__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "os": platform.platform(terse=True),
        "cpu": cpu_model(),
        "cores": available_cores(),
        "cpu_features": cpu_features(),
        "threads": threads,
        "memory_bytes": total_memory(),
        "gpus": gpus,
        "packages": installed(PACKAGES),
        "variables": {n: _CREDENTIALS.sub("://…@", os.environ[n]) for n in _VARIABLES if n in os.environ},
    }


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those that are installed, without importing them."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def checkout_commit(root: Path) -> str | None:
    """Return the git commit of a checkout, with `+changes` when tracked files differ; None outside a checkout."""
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None
    head = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if changed else head


def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    for key in ("model name", "Model", "Hardware"):
        value = _cpuinfo(key)
        if value:
            return value
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Return the processor's instruction sets that decide how fast matrices are, where the system tells them."""
    words = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return [f for f in _CPU_FEATURES if f in words]


def available_cores() -> int:
    """Return the cores this process may use: the affinity mask, or fewer where a container has a quota."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def total_memory() -> int | None:
    """Return the bytes of memory this process may fill: the machine's, or a container's limit where it is lower."""
    if sys.platform == "win32":
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _first_line("/sys/fs/cgroup/memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def visible_gpus() -> list[dict[str, object]]:
    """Return the GPUs that there are."""
    return _torch_view()[1]


def _torch_view() -> tuple[int | None, list[dict[str, object]]]:
    """Return torch's threads and the GPUs; without torch loaded, the GPUs that nvidia-smi names."""
    torch = sys.modules.get("torch")
    return (torch.get_num_threads(), _cuda_devices(torch)) if torch is not None else (None, _smi_devices())


def _cuda_devices(torch: ModuleType) -> list[dict[str, object]]:
    if torch.cuda.is_available():
        found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        return [
            {
                "name": p.name,
                "memory_bytes": p.total_memory,
                "capability": f"{p.major}.{p.minor}",
                "cuda": torch.version.cuda,
            }
            for p in found
        ]
    return [{"name": "Apple GPU (MPS)"}] if torch.backends.mps.is_available() else []


def _smi_devices() -> list[dict[str, object]]:
    if shutil.which("nvidia-smi") is None:
        return []
    table = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
    devices: list[dict[str, object]] = []
    for line in (table or "").splitlines():
        fields = [f.strip() for f in line.split(",")]
        if len(fields) == 3 and fields[1].isdigit():
            devices.append({"name": fields[0], "memory_bytes": int(fields[1]) * 2**20, "driver": fields[2]})
    return devices


def _output(*command: str) -> str | None:
    """Return what a program prints; None when it is missing, fails or takes more than five seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError:
        return ""
