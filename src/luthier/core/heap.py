"""Memory that has been freed goes back to the system: GNU's malloc keeps it, in pieces that nothing fits into.

Torch asks for tensors at addresses that are multiples of 64. Until glibc 2.39 a hole that such a tensor leaves is too
small for the next one of the same size, and a training step fills ever new memory: half as much again as it holds, or
twice as much. What is free can be handed back where it is (`malloc_trim`), at the price of the system clearing pages
when they are used again. Elsewhere than under glibc all of this does nothing.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

TIMES = 2
"""How often in a forward pass: before the first block and the middle one; four times save little more."""
TIMES_RECOMPUTED = 4
"""The same where blocks are computed again: little is kept, and what a block leaves counts for more."""
NARROWEST = 512
"""Hidden size from which it pays: clearing pages grows with the width, what is computed on them with its square. It
costs 25 % of the time at 256 wide, where 2 % of the memory is saved; at 512 up to 8 % for a quarter of the memory."""
_APART = 1 << 17
_M_MMAP_THRESHOLD = -3  # malloc.h


def release_between(blocks: Sequence[nn.Module], width: int, times: int = TIMES) -> bool:
    """Let a training forward pass hand back what is free, before a few of its blocks; return whether it does.

    Args:
        blocks: in the order in which they run.
        width: the hidden size.
        times: before how many of them.
    """
    if width < NARROWEST or _malloc_trim() is None:
        return False
    for block in {id(b): b for b in (blocks[i * len(blocks) // times] for i in range(times))}.values():
        if _release not in block._forward_pre_hooks.values():
            block.register_forward_pre_hook(_release)
    return True


def keep_large_blocks_apart() -> None:
    """Let each large tensor be a block of its own, which goes back to the system with the tensor.

    As blocks come and go, malloc begins to keep them in its heap, where small things that live on hold free space fast:
    40 to 50 MiB of 100 M parameters.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _APART)


def _release(block: nn.Module, arguments: object) -> None:
    import torch

    trim = _malloc_trim()
    if trim is not None and torch.is_grad_enabled():
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], object] | None:
    return _of_glibc("malloc_trim")


def _of_glibc(name: str) -> Callable[..., object] | None:
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except AttributeError:  # another C library
        return None
