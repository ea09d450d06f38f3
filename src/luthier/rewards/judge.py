"""An AI judge as a reward (RLAIF: Bai et al. 2022, arXiv:2212.08073; Lee et al. 2023, arXiv:2309.00267)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from luthier.core.errors import Problem, UserError
from luthier.core.paths import locate
from luthier.rewards.base import Place, Reward, Row, Scorer, Turns
from luthier.rewards.judging.endpoint import Address, Endpoint, chat_url
from luthier.rewards.judging.journal import Journal
from luthier.rewards.judging.judge import Judge, each
from luthier.rewards.judging.questions import Scoring, default_rubric
from luthier.rewards.judging.rubrics import read_rubric, rubric_problems

JOURNAL = "judge.jsonl"
"""In a cache: what the judge has answered."""


class AskedJudge(Reward):
    """A score between 0 and 1 that a language model behind an endpoint gives."""

    kind: Literal["judge"] = "judge"

    endpoint: str = Field(min_length=1)
    """The address of a chat endpoint of OpenAI's form, such as http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    """The model's name there."""
    rubric: str | None = Field(default=None, min_length=1)
    """A text file that says what makes an answer good, in English or Chinese. Without it: does what was asked, is
    correct, is clear."""
    low: float = 1.0
    """The worst score that the judge may give; it becomes the reward 0."""
    high: float = 10.0
    """The best score that the judge may give; it becomes the reward 1."""
    undecided: float = 0.0
    """The reward of an answer on which the judge gave no score that could be read, three times over."""
    api_key_env: str = Field(default="OPENAI_API_KEY", min_length=1)
    """The environment variable that holds the key. The key itself is never written anywhere."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """How many answers are judged at the same time."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """The most requests in a minute. Without it: as fast as the endpoint answers."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds until a request that is not answered is sent again."""
    retries: int = Field(default=6, ge=0)
    """How often a request is sent again before the run stops, waiting twice as long each time."""

    title: ClassVar[str] = "AI judge"
    summary: ClassVar[str] = "A score between 0 and 1 that a language model behind an endpoint gives by a rubric."
    paper: ClassVar[str] = "Lee et al. 2023, RLAIF, arXiv:2309.00267"
    zh: ClassVar[dict[str, str]] = {
        "title": "AI 评判",
        "summary": "由接口后的语言模型依据评判标准给出 0 到 1 之间的分数。",
        "endpoint": "OpenAI 形式的对话接口地址，例如 http://127.0.0.1:8000/v1。",
        "model": "接口中的模型名称。",
        "rubric": "写明好回答标准的文本文件，中英文均可。不填则为：完成要求、正确、清楚。",
        "low": "评判可给的最低分，对应奖励 0。",
        "high": "评判可给的最高分，对应奖励 1。",
        "undecided": "评判三次都没有给出可读分数时的奖励。",
        "api_key_env": "存放密钥的环境变量。密钥本身不会写入任何地方。",
        "concurrency": "同时评判的回答数。",
        "requests_per_minute": "每分钟最多请求数。不填则不限速。",
        "timeout": "请求无应答多少秒后重发。",
        "retries": "请求最多重发多少次，每次等待时间加倍，之后训练停止。",
    }

    @model_validator(mode="after")
    def _in_order(self) -> AskedJudge:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) has to be less than high ({self.high:g})")
        return self

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the reward with the rubric's absolute path."""
        return self if self.rubric is None else self.model_copy(update={"rubric": str(find(self.rubric).absolute())})

    def lacking(self, find: Callable[[str], Path]) -> list[Problem]:
        """Look at the address and for the rubric."""
        try:
            chat_url(self.endpoint)
        except UserError as error:
            return [*error.problems, *rubric_problems(self.rubric, find)]
        return rubric_problems(self.rubric, find)

    def open(self, place: Place) -> Scorer:
        """Read the rubric and open the connection. Nothing is asked yet.

        Raises:
            UserError: the rubric cannot be read, or the address is none.
        """
        judge, rubric = self.opened(place)
        return _Judged(judge, rubric, (self.low, self.high), self.undecided, self.concurrency)

    def opened(self, place: Place) -> tuple[Judge, str | None]:
        """Return who can be asked for verdicts of any form, and the rubric if one is named.

        Raises:
            UserError: the rubric cannot be read, or the address is none.
        """
        chat_url(self.endpoint)
        rubric = None
        if self.rubric is not None:
            rubric = read_rubric(locate(self.rubric, (place.folder, Path.cwd())))
        address = Address(
            self.endpoint,
            self.model,
            self.api_key_env,
            timeout=self.timeout,
            retries=self.retries,
            per_minute=self.requests_per_minute,
        )
        endpoint = Endpoint(address)
        journal = Journal(None if place.cache is None else place.cache / JOURNAL)
        return Judge(endpoint, self.model, address.temperature, journal), rubric


@dataclass
class _Judged(Scorer):
    judge: Judge
    rubric: str | None
    scale: tuple[float, float]
    undecided: float
    workers: int

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        """Return the scores between 0 and 1.

        Raises:
            NoAnswer: the endpoint did not answer. What it had answered before is kept.
            UserError: the endpoint refuses.
        """
        low, high = self.scale
        questions = [
            Scoring(self.rubric or default_rubric(prompt), prompt, answer, low, high)
            for prompt, answer in zip(prompts, answers)
        ]
        values = [self.undecided] * len(questions)
        for done in each(questions, self.judge.verdict, self.workers, self.judge.chat.stop):
            if done.fault is not None:
                self.judge.chat.stop()
                raise done.fault
            if done.result is not None:
                values[done.index] = (done.result - low) / (high - low)
        return values

    def close(self) -> None:
        self.judge.close()
