"""How many threads a model gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.core.threads import set_threads, worthwhile_threads


@pytest.mark.parametrize(("width", "available", "threads"), [(64, 8, 1), (1000, 8, 4), (1000, 2, 2), (4096, 16, 16)])
def test_large_matrices_get_more_threads_up_to_what_there_is(width: int, available: int, threads: int) -> None:
    with torch.device("meta"):
        model = nn.Linear(width, width)
    assert worthwhile_threads(model, available) == threads


def test_a_number_of_threads_that_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    assert set_threads(nn.Linear(2, 2)) == before == torch.get_num_threads()
