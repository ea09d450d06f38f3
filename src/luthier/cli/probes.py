"""What works on this machine, by trying it: a product of matrices, a GPU, a quantised weight. Each takes seconds."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.run.numbers import byte_size

if TYPE_CHECKING:
    import torch

Outcome = Literal["works", "slow", "missing", "broken"]

_SPEED_SECONDS = 0.5
# bfloat16 halves memory; below this share of float32's speed a CPU only emulates it.
_BF16_IS_FAST_FROM = 0.8


@dataclass(frozen=True)
class Probe:
    """One thing that was tried: what came of it, and what to do about it."""

    name: str
    outcome: Outcome
    detail: str = ""
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def probes(folder: Path) -> Iterator[tuple[str, Callable[[], list[Probe]]]]:
    """Yield what will be tried and the function that tries it, so that the screen can name what it waits for.

    Args:
        folder: where runs would be written.
    """
    yield "torch", _try_torch
    yield "speed of this machine", _try_speed
    yield "transformers", lambda: [_try_import("transformers", "AutoModelForCausalLM")]
    yield "peft", lambda: [_try_import("peft", "LoraConfig")]
    yield "bitsandbytes", _try_bitsandbytes
    yield "flash attention", _try_flash_attention
    yield "disk", lambda: [_try_disk(folder)]


def _try_torch() -> list[Probe]:
    import torch

    found = [Probe("torch", "works", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = f"torch is built for {built}, but no GPU answers" if built else "this torch is built for the CPU only"
        return [*found, Probe("GPU", "missing", why, "everything works without; a GPU is needed for larger models")]
    return found + [_try_gpu(index) for index in range(torch.cuda.device_count())]


def _try_gpu(index: int) -> Probe:
    import torch

    properties = torch.cuda.get_device_properties(index)
    name = f"GPU {index}"
    try:
        square = torch.ones(256, 256, device=f"cuda:{index}")
        right = float((square @ square).sum()) == 256.0**3
    except RuntimeError as error:
        return Probe(name, "broken", f"{properties.name}: {_first_line(error)}", "check the driver with nvidia-smi")
    if not right:
        return Probe(name, "broken", f"{properties.name} gives wrong products", "test its memory; do not train on it")
    free, total = torch.cuda.mem_get_info(index)
    return Probe(name, "works", f"{properties.name}, {byte_size(free)} of {byte_size(total)} free")


def _try_speed() -> list[Probe]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    single = multiply_speed(torch.float32, device)
    half = multiply_speed(torch.bfloat16, device)
    found = [Probe("float32", "works", f"{_operations(single)} on {device}")]
    if half < _BF16_IS_FAST_FROM * single:
        detail = f"{_operations(half)}, {single / half:.1f} times slower than float32"
        return [*found, Probe("bfloat16", "slow", detail, "leave dtype at auto: it takes float32 here")]
    # auto takes bfloat16 on a GPU only: few processors are faster with it.
    remedy = "auto takes float32 on a CPU; dtype: bfloat16 is worth a try" if device == "cpu" and half > single else ""
    return [*found, Probe("bfloat16", "works", f"{_operations(half)}, {half / single:.1f} times float32", remedy)]


def multiply_speed(dtype: torch.dtype, device: str) -> float:
    """Return the floating-point operations per second of a matrix product: the best one of half a second.

    The best, not the mean, because other programs on the machine only ever make it slower.
    """
    import torch

    size = 8192 if device == "cuda" else 768
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)  # the first one pays for set-up
    _finish(device)
    best, end = math.inf, time.perf_counter() + _SPEED_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        _finish(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def _finish(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _try_import(library: str, member: str) -> Probe:
    """Import a library and take something from it: an installation that does not fit together breaks here."""
    try:
        module = import_module(library)
        getattr(module, member)
    except Exception as error:  # a broken installation raises whatever it likes; the probe's work is to report it
        return Probe(
            library, "broken", f"{type(error).__name__}: {_first_line(error)}", f"pip install --upgrade {library}"
        )
    return Probe(library, "works", str(module.__version__))


def _try_bitsandbytes() -> list[Probe]:
    name = "bitsandbytes"
    if find_spec(name) is None:
        return [Probe(name, "missing", "no 4-bit and 8-bit weights", f"pip install {name}")]
    import torch

    try:
        functional = import_module("bitsandbytes.functional")
        weight = torch.randn(64, 64, device="cuda" if torch.cuda.is_available() else "cpu")
        packed, state = functional.quantize_4bit(weight, quant_type="nf4")
        error = float((functional.dequantize_4bit(packed, state) - weight).norm() / weight.norm())
    except Exception as error:  # as above
        return [Probe(name, "broken", f"{type(error).__name__}: {_first_line(error)}", f"pip install --upgrade {name}")]
    return [Probe(name, "works", f"NF4 on {weight.device.type}, error {error:.1%}")]


def _try_flash_attention() -> list[Probe]:
    import torch

    name = "flash attention"
    if not torch.cuda.is_available():
        return [Probe(name, "missing", "needs an NVIDIA GPU", "nothing is lost: sequences are packed without it, too")]
    if find_spec("flash_attn") is None:
        return [Probe(name, "missing", "flash-attn is not installed", "torch's own kernels are used")]
    try:
        attend = import_module("flash_attn").flash_attn_func
        q = torch.randn(1, 16, 2, 64, device="cuda", dtype=torch.bfloat16)
        attend(q, q, q, causal=True)
    except Exception as error:  # as above
        return [Probe(name, "broken", f"{type(error).__name__}: {_first_line(error)}", "reinstall it for this torch")]
    return [Probe(name, "works", "flash-attn")]


def _try_disk(folder: Path) -> Probe:
    free = shutil.disk_usage(folder).free
    enough = free > 5 * 2**30
    remedy = "" if enough else "a model of 1 B parameters and its checkpoints take about 10 GiB"
    return Probe("disk", "works" if enough else "slow", f"{byte_size(free)} free in {folder}", remedy)


def _operations(per_second: float) -> str:
    return f"{per_second / 1e12:.1f} TFLOP/s" if per_second >= 1e12 else f"{per_second / 1e9:.0f} GFLOP/s"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
