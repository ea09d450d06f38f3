"""Any task of lm-evaluation-harness, by its name or from a folder of its YAML files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from luthier.core.errors import DataError, MissingExtra, Problem, did_you_mean
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from luthier.models.loaded import LoadedModel

_FIRST = ("exact_match", "acc", "f1", "bleu", "rougeL", "word_perplexity", "perplexity")


class LmEval(Task):
    """A task of lm-evaluation-harness."""

    kind: Literal["lm_eval"] = "lm_eval"

    task: str = Field(min_length=1)
    """The task's name there, such as hellaswag, or a group's, such as mmlu. Its data are fetched from the hub or found
    in the cache; in a YAML file of your own, data_files name local ones."""
    include: str | None = Field(default=None, min_length=1)
    """A folder with YAML files of further tasks."""
    shots: int | None = Field(default=None, ge=0)
    """Solved examples before each question. Without it: as the task says."""
    chat: bool = False
    """Ask in the model's chat template."""
    score: str | None = None
    """Which of the task's metrics is the score. Without it: exact_match, acc, or the first that it has."""

    title: ClassVar[str] = "lm-evaluation-harness"
    summary: ClassVar[str] = "Any task of lm-evaluation-harness, by name."
    paper: ClassVar[str] = "Biderman et al. 2024, arXiv:2405.14782"
    metric: ClassVar[str] = "accuracy"
    zh: ClassVar[dict[str, str]] = {
        "title": "lm-evaluation-harness",
        "summary": "按名称使用 lm-evaluation-harness 的任意任务。",
        "task": "任务名（如 hellaswag）或任务组名（如 mmlu）。数据从 hub 下载或取自缓存；自己的 YAML 可用 data_files 指向本地文件。",
        "include": "存放更多任务 YAML 的文件夹。",
        "shots": "每题之前的示例数。不写则按任务规定。",
        "chat": "用模型的对话模板提问。",
        "score": "以任务的哪个指标计分。不写则为 exact_match、acc 或其第一个指标。",
    }

    @property
    def label(self) -> str:
        return self.name or self.task

    def located(self, find: Callable[[str], Path]) -> Self:
        return self if self.include is None else self.model_copy(update={"include": str(find(self.include).absolute())})

    def read(self) -> Cases:
        """Return the names of the leaf tasks with the documents that are measured of each."""
        manager = self._manager()
        if self.task not in manager.all_tasks:
            near = did_you_mean(self.task, manager.all_tasks)
            what = f'lm-evaluation-harness has no task "{self.task}".{near}'
            remedy = "name one of `lm-eval ls tasks`, or the folder of your own: include: FOLDER"
            raise DataError(Problem(what, f"lm_eval:{self.task}", remedy))
        try:
            loaded = manager.load(self.task)["tasks"]
            sizes = {name: len(list(task.eval_docs)) for name, task in loaded.items()}
        except Exception as error:  # whatever a data set's loader raises: no network, no file, no licence
            what = f"The data of the task cannot be loaded: {type(error).__name__}: {str(error)[:300]}"
            remedy = "fetch them once with a network (lm-eval keeps a cache), or point data_files to local files"
            raise DataError(Problem(what, f"lm_eval:{self.task}", remedy)) from error
        names = tuple((name, number) for name, size in sizes.items() for number in range(size))
        return self.chosen(Cases(names, (), "lm-evaluation-harness"))

    def _manager(self) -> TaskManager:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise MissingExtra("lm-eval", "lm-eval", f"The task lm_eval:{self.task}") from error
        if self.include is not None:
            own = TaskManager(include_path=self.include, include_defaults=False)
            if self.task in own.all_tasks:  # the index of all the harness's own tasks takes seconds
                return own
        return TaskManager(include_path=self.include)

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from lm_eval.evaluator import simple_evaluate

        from luthier.evaluate.harness import HarnessModel

        wanted: dict[str, list[int]] = {}
        for item in cases.items:
            assert isinstance(item, tuple)
            wanted.setdefault(str(item[0]), []).append(int(item[1]))
        measured = simple_evaluate(
            HarnessModel(model, setting.cut, setting.max_length),
            tasks=list(wanted),
            num_fewshot=self.shots,
            samples=wanted,
            bootstrap_iters=0,
            apply_chat_template=self.chat,
            task_manager=self._manager(),
        )
        assert measured is not None
        found: dict = dict(measured)
        parts = [self._part(name, found["samples"][name], dict(found["results"][name]), found) for name in wanted]
        rows, higher = np.concatenate([part[0] for part in parts]), parts[0][2]
        groups = [name for (cases_N2, *_), name in zip(parts, wanted) for _ in cases_N2]
        chances = [part[1] for part in parts]
        chance = None if any(c is None for c in chances) else np.concatenate([c for c in chances if c is not None])
        details: dict[str, object] = {
            name: {key: value for key, value in found["results"][name].items() if isinstance(value, float)}
            for name in wanted
        }
        return result_of(self.label, parts[0][3], rows, "mean", higher, chance, groups, details)

    def _part(
        self, name: str, samples: Sequence[Mapping[str, object]], results: Mapping[str, object], found: dict
    ) -> tuple[np.ndarray, np.ndarray | None, bool, str]:
        """Return of one task the cases (N, 2), the chance of each, the direction, and what the score is."""
        keys = [key.split(",") for key, value in results.items() if isinstance(value, float) and "_stderr" not in key]
        metrics = [key[0] for key in keys]
        wanted = self.score or next((m for m in _FIRST if m in metrics), metrics[0])
        if wanted not in metrics:
            what = f'The task {name} has no metric "{wanted}".{did_you_mean(wanted, metrics)}'
            raise DataError(Problem(what, f"lm_eval:{self.task}", f"choose one of: {', '.join(metrics)}"))
        chosen = next(key[1] for key in keys if key[0] == wanted)
        mine = [sample for sample in samples if sample.get("filter", chosen) == chosen]
        values = [sample.get(wanted) for sample in mine]
        higher = bool(found["higher_is_better"][name].get(wanted, True))
        if all(isinstance(value, int | float) for value in values):
            rows = np.array([[float(value), 1.0] for value in values if isinstance(value, int | float)])
            if abs(rows[:, 0].mean() - float(results[f"{wanted},{chosen}"])) < 1e-6:  # type: ignore[arg-type]
                is_choice = found["configs"][name].get("output_type") == "multiple_choice"
                sizes = [len(s["filtered_resps"]) for s in mine] if is_choice else []  # type: ignore[arg-type]
                chance = 1 / np.array(sizes) if is_choice and wanted.startswith("acc") else None
                return rows, chance, higher, "accuracy" if wanted.startswith("acc") else wanted
        if all(isinstance(value, list | tuple) and len(value) == 2 for value in values) and "perplexity" in wanted:
            rows = np.array([[-float(v[0]), float(v[1])] for v in values])  # type: ignore[index]
            return rows, None, False, "loss"
        what = f"The metric {wanted} of {name} is no mean over its cases, so there is no interval of it."
        others = [metric for metric in metrics if metric != wanted]
        raise DataError(Problem(what, f"lm_eval:{self.task}", f"name another: score: {' or '.join(others) or '…'}"))
