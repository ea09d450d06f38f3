"""Trackers copy the metrics faithfully, go on after a resume, and never stop a run.

TensorBoard is tested for real. Weights & Biases and MLflow are tested through small stand-ins that take exactly the
calls of the real ones (signatures of wandb 0.31 and mlflow 3.17), and for real where they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from luthier.core.errors import MissingExtra
from luthier.core.rundir import StageDir
from luthier.train.hooks import trackers
from luthier.train.hooks.trackers import flatten, make_trackers, require_trackers, tagged

CONFIG = {"model": {"path": "starter"}, "method": {"kind": "lora", "rank": 8}, "data": "rows.jsonl"}


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "learning_rate": 2e-4, "tokens": 100, "eval_loss": 2 / step}


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    return StageDir(tmp_path / "my-run" / "00-sft")


def log(stage: StageDir, name: trackers.TrackerName, steps: range) -> trackers.Tracker:
    (tracker,) = make_trackers([name], stage, CONFIG)
    for step in steps:
        tracker.log(step, row(step))
    tracker.close()
    return tracker


def read_tensorboard(stage: StageDir) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(stage.path / "tensorboard"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_every_value_of_every_step(stage):
    tracker = log(stage, "tensorboard", range(1, 6))
    scalars = read_tensorboard(stage)
    assert tracker.fault is None
    assert set(scalars) == {"train/loss", "train/learning_rate", "train/tokens", "eval/loss"}
    assert scalars["train/loss"] == pytest.approx({s: 1 / s for s in range(1, 6)})
    assert scalars["eval/loss"] == pytest.approx({s: 2 / s for s in range(1, 6)})


def test_a_resumed_run_goes_on_in_the_same_tensorboard_curve_without_doubled_steps(stage):
    log(stage, "tensorboard", range(1, 8))
    log(stage, "tensorboard", range(5, 11))
    assert list(read_tensorboard(stage)["train/loss"]) == list(range(1, 11))


def test_a_library_that_is_not_installed_is_named_with_its_remedy(stage, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(MissingExtra, match=r'pip install "luthier\[wandb\]"'):
        make_trackers(["wandb"], stage, CONFIG)
    with pytest.raises(MissingExtra, match="log_to: mlflow needs the library mlflow"):
        require_trackers(["mlflow"])


def test_a_failing_tracker_warns_once_by_name_and_the_run_goes_on(stage, monkeypatch):
    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            raise ConnectionError("no route to\nhost")

        def finish(self) -> None:
            raise AssertionError("a tracker that was given up is left alone")

    install_wandb(monkeypatch, lambda **_: Run())
    with pytest.warns(RuntimeWarning, match=r"wandb failed.*ConnectionError: no route to host") as said:
        tracker = log(stage, "wandb", range(1, 4))
    assert len(said) == 1
    assert tracker.fault == "ConnectionError: no route to host"


def test_a_tracker_that_cannot_be_opened_warns_and_the_others_work(stage, monkeypatch):
    def refuse(**_: object) -> None:
        raise RuntimeError("API key invalid")

    install_wandb(monkeypatch, refuse)
    with pytest.warns(RuntimeWarning, match=r"wandb failed.*API key invalid"):
        opened = make_trackers(["wandb", "tensorboard"], stage, CONFIG)
    for tracker in opened:
        tracker.log(1, row(1))
        tracker.close()
    assert read_tensorboard(stage)["train/loss"] == {1: 1.0}


# ---------------------------------------------------------------------- Weights & Biases


@dataclass
class FakeWandbRun:
    options: dict[str, object]
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    is_finished: bool = False

    def log(self, data: dict[str, float], step: int | None = None, commit: bool | None = None) -> None:
        assert not self.is_finished
        assert step is not None
        self.rows.append((step, data))

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        self.is_finished = True


def install_wandb(monkeypatch: pytest.MonkeyPatch, init) -> None:
    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)


@pytest.fixture
def wandb_runs(monkeypatch, tmp_path) -> list[FakeWandbRun]:
    runs: list[FakeWandbRun] = []

    def init(*, project, name, id, resume, dir, config, mode) -> FakeWandbRun:
        assert Path(dir).is_dir(), "wandb writes to the system's temporary folder when dir does not exist"
        runs.append(
            FakeWandbRun({"project": project, "name": name, "id": id, "resume": resume, "config": config, "mode": mode})
        )
        return runs[-1]

    install_wandb(monkeypatch, init)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    return runs


def test_wandb_gets_the_rows_and_the_recipe(stage, wandb_runs):
    log(stage, "wandb", range(1, 4))
    (run,) = wandb_runs
    assert run.options["name"] == "my-run/00-sft"
    assert run.options["config"] == CONFIG
    assert [step for step, _ in run.rows] == [1, 2, 3]
    assert run.rows[1][1] == tagged(row(2))
    assert run.is_finished


def test_wandb_stays_offline_without_a_key_and_as_told_otherwise(stage, wandb_runs, monkeypatch, tmp_path):
    log(stage, "wandb", range(1, 2))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log(stage, "wandb", range(2, 3))
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    log(stage, "wandb", range(3, 4))
    assert [run.options["mode"] for run in wandb_runs] == ["offline", None, None]


def test_a_resumed_run_goes_on_in_the_same_wandb_run(stage, wandb_runs):
    log(stage, "wandb", range(1, 3))
    log(stage, "wandb", range(3, 5))
    first, second = wandb_runs
    assert first.options["id"] == second.options["id"]
    assert second.options["resume"] == "allow"


# ---------------------------------------------------------------------- MLflow


@dataclass
class FakeStore:
    uri: str = ""
    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, dict] = field(default_factory=dict)
    requests: int = 0


@pytest.fixture
def mlflow_store(monkeypatch) -> FakeStore:
    store = FakeStore()

    class MlflowClient:
        def __init__(self, tracking_uri=None, registry_uri=None):
            store.uri = tracking_uri

        def get_experiment_by_name(self, name):
            found = store.experiments.get(name)
            return types.SimpleNamespace(experiment_id=found) if found else None

        def create_experiment(self, name, artifact_location=None, tags=None):
            return store.experiments.setdefault(name, str(len(store.experiments)))

        def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
            run_id = f"run{len(store.runs)}"
            store.runs[run_id] = {"name": run_name, "status": "RUNNING", "params": {}, "metrics": []}
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

        def update_run(self, run_id, status=None, name=None):
            store.runs[run_id]["status"] = status

        def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
            assert len(params) <= 100, "MLflow refuses more"
            assert len(metrics) <= 1000, "MLflow refuses more"
            store.requests += 1
            store.runs[run_id]["params"].update({p.key: p.value for p in params})
            store.runs[run_id]["metrics"] += [(m.key, m.value, m.step) for m in metrics]

        def set_terminated(self, run_id, status=None, end_time=None):
            store.runs[run_id]["status"] = status or "FINISHED"

    def metric(key, value, timestamp, step):
        return types.SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    mlflow, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    mlflow.MlflowClient = MlflowClient
    entities.Metric = metric
    entities.Param = lambda key, value: types.SimpleNamespace(key=key, value=value)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store


def test_mlflow_gets_the_rows_and_the_recipe_in_a_store_inside_the_run(stage, mlflow_store):
    log(stage, "mlflow", range(1, 4))
    (run,) = mlflow_store.runs.values()
    assert mlflow_store.uri == f"sqlite:///{stage.path.resolve()}/mlflow.db"
    assert run["name"] == "my-run/00-sft"
    assert run["params"]["method.rank"] == "8"
    assert ("eval/loss", 1.0, 2) in run["metrics"]
    assert len(run["metrics"]) == 3 * 4
    assert run["status"] == "FINISHED"


def test_mlflow_is_not_asked_at_every_step(stage, mlflow_store):
    log(stage, "mlflow", range(1, 201))
    (run,) = mlflow_store.runs.values()
    assert len(run["metrics"]) == 200 * 4
    assert mlflow_store.requests <= 4


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(stage, mlflow_store):
    log(stage, "mlflow", range(1, 3))
    log(stage, "mlflow", range(3, 5))
    (run,) = mlflow_store.runs.values()
    assert [step for key, _, step in run["metrics"] if key == "train/loss"] == [1, 2, 3, 4]


def test_mlflow_goes_to_the_server_that_the_environment_names(stage, mlflow_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    log(stage, "mlflow", range(1, 2))
    assert mlflow_store.uri == "http://tracking:5000"


# ---------------------------------------------------------------------- for real, where installed


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_the_real_wandb_writes_an_offline_run(stage, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        log(stage, "wandb", range(1, 4))
    assert list(stage.path.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_the_real_mlflow_reads_back_what_was_logged_before_and_after_a_resume(stage, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log(stage, "mlflow", range(1, 4))
    assert log(stage, "mlflow", range(4, 6)).fault is None
    client = MlflowClient(tracking_uri=f"sqlite:///{stage.path.resolve()}/mlflow.db")
    run_id = json.loads((stage.path / "trackers.json").read_text())["mlflow"]
    history = client.get_metric_history(run_id, "train/loss")
    assert [m.step for m in history] == [1, 2, 3, 4, 5]
    assert client.get_run(run_id).data.params["method.kind"] == "lora"


def test_nested_settings_become_dotted_names():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "e": None}) == {"a.b.c": "1", "d": "[1, 2]", "e": "None"}
