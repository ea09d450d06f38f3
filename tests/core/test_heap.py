"""Freed memory goes back to the system: at the places, at the times and to the extent that is said."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from luthier.core import heap

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than GNU's")


class _Stack(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr(heap, "_malloc_trim", lambda: seen.append)
    return seen


@pytest.mark.parametrize(("depth", "times"), [(1, 1), (2, 2), (3, 2), (30, 2)])
def test_a_pass_that_is_trained_releases_a_few_times_and_others_never(depth: int, times: int, calls: list[int]) -> None:
    stack = _Stack(depth)
    for _ in range(2):  # a second engine on the same model adds nothing
        assert heap.release_between(list(stack.blocks), heap.NARROWEST)
    stack(torch.ones(2, 4))
    assert calls == [0] * times
    with torch.no_grad():
        stack(torch.ones(2, 4))
    assert calls == [0] * times


def test_a_narrow_model_keeps_what_it_has(calls: list[int]) -> None:
    stack = _Stack(4)
    assert not heap.release_between(list(stack.blocks), heap.NARROWEST - 1)
    stack(torch.ones(2, 4))
    assert not calls


_HOLES = """
import torch
from luthier.core.heap import _malloc_trim

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

del_first = torch.ones(4 * 2**20); del del_first  # from now on malloc keeps blocks of this size in its heap
many = [torch.ones(2**17) for _ in range(400)]
many = many[::20]
before = resident()
_malloc_trim()(0)
print(before - resident())
"""


@needs_glibc
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_holes_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 100  # of 190 MiB that are free between what is kept
