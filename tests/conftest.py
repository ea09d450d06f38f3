"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models gain nothing from a second thread, and on a busy machine threads that wait for each other lose minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and small real models; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("LUTHIER_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "models").is_dir():
        reason = f"no shared data at {folder}; set LUTHIER_SHARED to the folder that holds models/ and data/"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a tiny model, written once in a session."""
    import families

    home = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        if not (home / name).is_dir():
            families.write(name, home / name)
        return home / name

    return folder


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests keep for later runs is not for the runs of whoever tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _even_small_matrices_are_quantized() -> Iterator[None]:
    """Tiny models have no others; the rule that keeps them is tested by itself."""
    from luthier.models import quantized

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "KEPT_BELOW", 0)
        yield
