"""Trackers: the metrics of a run, also in TensorBoard, Weights & Biases or MLflow.

metrics.jsonl is the record; a tracker is a copy for those who compare runs elsewhere. A tracker that fails never stops
a run: it says once what happened, and is left out from then on. Only a library that is not installed is an error, and
that before the first step.

All three get the same names: `train/loss`, `train/learning_rate`, …, and `eval/loss` for what was held out. A resumed
run goes on in the same curve.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from luthier.core.errors import MissingExtra
from luthier.core.rundir import StageDir, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from torch.utils.tensorboard import SummaryWriter

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
Config = Mapping[str, object]
Values = Mapping[str, float]

_PROJECT = "luthier"
# MLflow takes a request (or a database commit) for each batch: one for every step would slow short steps down.
_FLUSH_SECONDS = 5.0
_FLUSH_METRICS = 900
# MLflow's limits: parameters in one request, characters of a value.
_PARAMS = 100
_PARAM_CHARACTERS = 500


@dataclass
class Tracker:
    """One place that metrics are copied to.

    Attributes:
        name: the library.
        write: takes a step and its named values.
        finish: ends the copy; called once.
        fault: why the tracker was given up, if it was.
    """

    name: TrackerName
    write: Callable[[int, Values], None]
    finish: Callable[[], None]
    fault: str | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Copy one row of metrics.jsonl."""
        self._guarded(lambda: self.write(step, tagged(metrics)))

    def close(self) -> None:
        """Write out what is pending and end."""
        self._guarded(self.finish)

    def _guarded(self, action: Callable[[], None]) -> None:
        if self.fault is not None:
            return
        try:
            action()
        except Exception as error:  # a library's network, disk or protocol: whatever it is, the run is worth more
            self.fault = _give_up(self.name, error)


def make_trackers(names: Sequence[TrackerName], stage_dir: StageDir, config: Config) -> list[Tracker]:
    """Return the trackers of a stage.

    Args:
        names: which libraries.
        stage_dir: where their files go, and the numbers by which a resumed run finds its curves again.
        config: the resolved recipe, shown beside the curves.

    Raises:
        MissingExtra: a library is not installed.
    """
    require_trackers(names)
    openers = {"tensorboard": _open_tensorboard, "wandb": _open_wandb, "mlflow": _open_mlflow}
    trackers = []
    for name in names:
        try:
            trackers.append(openers[name](stage_dir, config))
        except Exception as error:  # no account, no server, a full disk: the run goes on without
            trackers.append(Tracker(name, _ignore, _nothing, fault=_give_up(name, error)))
    return trackers


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Check that the libraries are installed, without importing them.

    Raises:
        MissingExtra: one is not.
    """
    for name in names:
        if name not in sys.modules and find_spec(name) is None:
            raise MissingExtra(name, name, f"log_to: {name}")


def tagged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the values by the names that dashboards group: `eval/…` for what was held out, `train/…` for the rest."""
    return {
        f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}": float(value)
        for key, value in metrics.items()
        if key != "step"
    }


def _give_up(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    fault = f"{type(error).__name__}: {reason[:300]}" if reason else type(error).__name__
    warnings.warn(
        f"{name} failed and is left out from here on ({fault}). The run goes on; metrics.jsonl has everything.",
        RuntimeWarning,
        stacklevel=4,
    )
    return fault


def _ignore(step: int, values: Values) -> None:
    pass


def _nothing() -> None:
    pass


# ---------------------------------------------------------------------- TensorBoard


@dataclass
class _TensorBoard:
    folder: Path
    config: Config
    writer: SummaryWriter | None = None

    def write(self, step: int, values: Values) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:
            # Opened at the first row: only then is the step known from which an earlier, killed run is overwritten.
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
            recipe = json.dumps(self.config, indent=2, ensure_ascii=False, default=str)
            self.writer.add_text("recipe", "".join(f"    {line}\n" for line in recipe.splitlines()), step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _open_tensorboard(stage_dir: StageDir, config: Config) -> Tracker:
    board = _TensorBoard(stage_dir.path / "tensorboard", config)
    return Tracker("tensorboard", board.write, board.finish)


# ---------------------------------------------------------------------- Weights & Biases


def _open_wandb(stage_dir: StageDir, config: Config) -> Tracker:
    import wandb

    stage_dir.path.mkdir(parents=True, exist_ok=True)
    known = _read_ids(stage_dir)
    run_id = known.get("wandb") or uuid.uuid4().hex[:12]
    # Without a key wandb would stop and ask for one; offline the run is kept, and `wandb sync` sends it later.
    mode = None if os.environ.get("WANDB_MODE") or _has_wandb_key() else "offline"
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=_run_name(stage_dir),
        id=run_id,
        resume="allow",
        dir=str(stage_dir.path),
        config=dict(config),
        mode=mode,
    )
    _write_ids(stage_dir, {**known, "wandb": run_id})

    def write(step: int, values: Values) -> None:
        run.log(dict(values), step=step)

    return Tracker("wandb", write, run.finish)


def _has_wandb_key() -> bool:
    """Tell whether `wandb login` was done here, as wandb itself would look it up."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


# ---------------------------------------------------------------------- MLflow


@dataclass
class _Mlflow:
    client: MlflowClient
    run_id: str
    pending: list[Metric] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)

    def write(self, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.pending += [Metric(name, value, now, step) for name, value in values.items()]
        if len(self.pending) >= _FLUSH_METRICS or time.monotonic() - self.flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        self.client.log_batch(self.run_id, metrics=self.pending)
        self.pending, self.flushed = [], time.monotonic()

    def finish(self) -> None:
        self.flush()
        self.client.set_terminated(self.run_id)


def _open_mlflow(stage_dir: StageDir, config: Config) -> Tracker:
    from mlflow import MlflowClient
    from mlflow.entities import Param

    stage_dir.path.mkdir(parents=True, exist_ok=True)
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
    # A database inside the run folder: MLflow 3 refuses its older store of loose files.
    home = stage_dir.path.resolve()
    client = MlflowClient(tracking_uri=elsewhere or f"sqlite:///{(home / 'mlflow.db').as_posix()}")
    artifacts = None if elsewhere else (home / "mlartifacts").as_uri()
    known = _read_ids(stage_dir)
    run_id = known.get("mlflow")
    if run_id is None:
        experiment = client.get_experiment_by_name(_PROJECT)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(_PROJECT, artifacts)
        run_id = client.create_run(experiment_id, run_name=_run_name(stage_dir)).info.run_id
        params = [Param(key, value[:_PARAM_CHARACTERS]) for key, value in flatten(config).items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(run_id, params=params[start : start + _PARAMS])
        _write_ids(stage_dir, {**known, "mlflow": run_id})
    else:
        client.update_run(run_id, status="RUNNING")
    run = _Mlflow(client, run_id)
    return Tracker("mlflow", run.write, run.finish)


def flatten(config: Config, prefix: str = "") -> dict[str, str]:
    """Return nested settings as `method.rank` → `16`."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


# ---------------------------------------------------------------------- what they share


def _run_name(stage_dir: StageDir) -> str:
    path = stage_dir.path.resolve()
    return f"{path.parent.name}/{path.name}"


def _ids_file(stage_dir: StageDir) -> Path:
    return stage_dir.path / "trackers.json"


def _read_ids(stage_dir: StageDir) -> dict[str, str]:
    file = _ids_file(stage_dir)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _write_ids(stage_dir: StageDir, ids: dict[str, str]) -> None:
    write_json(_ids_file(stage_dir), ids)
