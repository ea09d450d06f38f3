"""Code: programs that the model writes are run against tests, in a sandbox; pass@k.

Chen et al. 2021, arXiv:2107.03374. Of n programs for a problem, c of which pass, the estimate is
pass@k = 1 − C(n − c, k) / C(n, k), the chance that one of k drawn ones passes.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from luthier.core.errors import DataError, Problem
from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.data.records import Record
    from luthier.evaluate.cases import Values
    from luthier.models.loaded import LoadedModel

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n```", "\n@")
"""Where a completion of a function has ended, as in the paper."""
_FENCED = re.compile(r"```(?:python|py)?\s*\n(.*?)(?:```|$)", re.DOTALL)


@dataclass(frozen=True)
class Program:
    """The beginning of a program, the tests, and the function that they are given. `source` is `file:line`."""

    prompt: str
    test: str
    entry_point: str
    source: str


class Code(Task):
    """Functions to complete, and tests that they have to pass."""

    kind: Literal["code"] = "code"

    data: DataSpec
    """Rows of {prompt, test, entry_point}: the beginning of a Python program, tests that define check(candidate), and
    the function's name. HumanEval's file is recognised as it is."""
    run_code: bool = False
    """Code that the model has written is run on this machine, within limits. It has to be allowed: run_code: true."""
    samples: int = Field(default=1, ge=1)
    """Programs written for each problem."""
    k: int = Field(default=1, ge=1)
    """Count a problem as solved by the chance that one of k programs passes; needs at least k samples."""
    temperature: float = Field(default=0.0, ge=0)
    """How freely programs are written; 0 takes the likeliest, which makes all samples the same."""
    max_new_tokens: int = Field(default=400, ge=1)
    """The longest program."""
    seconds: float = Field(default=5.0, gt=0)
    """Time that a program may take."""
    chat: bool = False
    """Ask in the model's chat template and run the first block of code in the answer."""

    title: ClassVar[str] = "Code"
    summary: ClassVar[str] = "The chance that a written program passes its tests."
    paper: ClassVar[str] = "Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv:2107.03374"
    metric: ClassVar[str] = "pass_at_k"
    zh: ClassVar[dict[str, str]] = {
        "title": "代码",
        "summary": "写出的程序通过测试的概率。",
        "data": "{prompt, test, entry_point} 的数据：Python 程序的开头、定义 check(candidate) 的测试、函数名。HumanEval 的文件可直接识别。",
        "run_code": "模型写的代码会在本机（有限制地）运行，须明确允许：run_code: true。",
        "samples": "每题写多少个程序。",
        "k": "以 k 个程序中至少一个通过的概率计分；samples 不得少于 k。",
        "temperature": "写程序的随机程度；0 取最可能的，所有样本相同。",
        "max_new_tokens": "程序最长多少 token。",
        "seconds": "一个程序可用的时间（秒）。",
        "chat": "用模型的对话模板提问，并运行回答中的第一个代码块。",
    }

    @model_validator(mode="after")
    def _enough(self) -> Code:
        if self.k > self.samples:
            raise ValueError(f"pass@{self.k} needs at least {self.k} samples, and there are {self.samples}")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are the same; set a temperature such as 0.8")
        return self

    def _forbidden(self) -> list[Problem]:
        if self.run_code:
            return []
        what = f'The task "{self.label}" would run code that the model writes, which nobody has allowed.'
        return [Problem(what, "", "write run_code: true, best inside a container")]

    def read(self) -> Cases:
        from luthier.evaluate.cases import Layout, read_cases

        if self._forbidden():
            raise DataError(*self._forbidden())
        layout = Layout(
            "HumanEval", (("prompt",), ("test",), ("entry_point",)), _program, '{"prompt", "test", "entry_point"}'
        )
        return self.chosen(read_cases(self.data, (layout,), "programs with tests"))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from concurrent.futures import ThreadPoolExecutor

        from luthier.evaluate.sandbox import run_python, walls

        programs = [item for item in cases.items if isinstance(item, Program)]
        written = [(p, code) for p, codes in zip(programs, self._written(model, programs)) for code in codes]
        sources = [f"{code}\n{program.test}\ncheck({program.entry_point})\n" for program, code in written]
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1)) as pool:
            ran = list(pool.map(lambda source: run_python(source, self.seconds), sources))
        passed = np.array([one.passed for one in ran]).reshape(len(programs), self.samples).sum(1)
        values = np.array([_pass_at_k(self.samples, int(c), self.k) for c in passed])
        faults: dict[str, int] = {}
        for one in ran:
            kind = one.why.partition(":")[0] or "passed"
            faults[kind] = faults.get(kind, 0) + 1
        common = dict(sorted(faults.items(), key=lambda pair: -pair[1])[:8])
        details = {"k": self.k, "samples": self.samples, "endings": common, "isolated": bool(walls())}
        return result_of(self.label, self.metric, values, details=details)

    def _written(self, model: LoadedModel, programs: list[Program]) -> list[list[str]]:
        from luthier.data.records import PromptAnswer, Text
        from luthier.data.render import render_prompt
        from luthier.train.generate import Sampling, sample, stop_tokens

        def record(program: Program) -> Record:
            if self.chat:
                return PromptAnswer(program.prompt, "", "", "", (), False, program.source)
            return Text(program.prompt, program.source)

        prompts = [list(render_prompt(model.tokenizer, record(program))) for program in programs]
        sampling = Sampling(self.max_new_tokens, self.temperature)
        stops = set(stop_tokens(model))
        found = []
        for program, answers in zip(programs, sample(model, prompts, self.samples, sampling, counts=False)):
            tokens = [[t for t in answer.tokens.tolist() if t not in stops] for answer in answers]
            texts = [str(model.tokenizer.decode(t, skip_special_tokens=True)) for t in tokens]
            found.append([self._program(program, text) for text in texts])
        return found

    def _program(self, program: Program, text: str) -> str:
        """Return the whole program of a completion or an answer."""
        if self.chat:
            fenced = _FENCED.search(text)
            text = fenced[1] if fenced else text
            return text if f"def {program.entry_point}" in text else program.prompt + text
        end = min((at for stop in STOPS if (at := text.find(stop)) >= 0), default=len(text))
        return program.prompt + text[:end]


def _pass_at_k(n: int, passed: int, k: int) -> float:
    """Return the chance that one of k programs, drawn from n of which some pass, passes."""
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def _program(values: Values, source: str) -> Program:
    from luthier.evaluate.cases import text_in

    return Program(text_in(values, "prompt"), text_in(values, "test"), text_in(values, "entry_point"), source)
