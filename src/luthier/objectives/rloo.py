"""RLOO: REINFORCE in which the other answers to a prompt are the baseline.

Ahmadian et al. 2024, Back to Basics, arXiv:2402.14740. A whole answer is one action; with R = r − β·Σ(log π_old − log π₀),

    Âᵢ = Rᵢ − mean of the other R          ρ = π(y) / π_old(y)
    loss = −min(ρ·Â, clip(ρ, 1 − ε, 1 + ε_high)·Â)

Shape legend: M supervised tokens, S sequences, P prompts, G answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective
from luthier.objectives.rollouts import (
    SMALL,
    Drawing,
    Group,
    clipped,
    kept_answers,
    leave_one_out,
    rewards_of,
    rollout_problems,
    sums,
    with_numbers,
    without,
)
from luthier.rewards.base import AnyReward

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from luthier.core.batch import Batch, Example


class Rloo(Objective):
    """Let the model answer, and make answers likelier that were better than the others to the same prompt."""

    kind: Literal["rloo"] = "rloo"

    reward: AnyReward
    """What an answer is worth: a function (file.py:function), exact_match, regex, model, judge, logprob, or a sum."""
    num_generations: int = Field(default=2, ge=2)
    """How many answers to each prompt are compared with each other. batch_size counts prompts."""
    max_new_tokens: int = Field(default=256, ge=1)
    """The longest answer in tokens; what has not ended by then is truncated."""
    temperature: float = Field(default=1.0, gt=0)
    """How freely answers are drawn: at 1 as the model has it. The loss sees the model at this temperature too."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability."""
    beta: float = Field(default=0.05, ge=0)
    """What each nat by which an answer has moved away from the start costs of its reward."""
    normalize_advantages: bool = False
    """Divide advantages by their spread in the step, after taking their mean away."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """How far an answer's probability may fall in one set of answers, as a share of itself, before it stops counting."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """How far it may rise. Without it: epsilon."""
    iterations: int = Field(default=1, ge=1)
    """Optimizer steps on each set of answers."""
    mask_truncated: bool = False
    """Learn nothing from answers that had to stop before they ended; their rewards still count for the others."""
    max_kl: float | None = Field(default=2.0, gt=0)
    """Stop the run when the model has moved this far from its start (mean KL of a token in nats). If beta is
    0 it is measured on a quarter of the prompts; null measures nothing then."""
    vllm: str | None = None
    """The address of a running vLLM server that writes the answers, such as http://127.0.0.1:8000/v1; it is given the
    adapter before each set of answers. Without it Luthier's own engine writes them. For method lora."""

    title: ClassVar[str] = "REINFORCE leave-one-out"
    summary: ClassVar[str] = "Plain policy gradient; an answer's baseline is the other answers to its prompt."
    paper: ClassVar[str] = "Ahmadian et al. 2024, Back to Basics, arXiv:2402.14740"
    zh: ClassVar[dict[str, str]] = {
        "title": "留一法 REINFORCE（RLOO）",
        "summary": "朴素的策略梯度；以同一提示的其他回答为基线。",
        "reward": "回答的价值：函数（file.py:function）、exact_match、regex、model、judge、logprob，或它们的加权和。",
        "num_generations": "每个提示生成多少个回答互相比较。batch_size 数的是提示。",
        "max_new_tokens": "回答最长多少个词元；到此仍未结束的即被截断。",
        "temperature": "采样温度：1 即模型本身。损失也按这个温度计算。",
        "top_p": "只从概率之和达到此值的最可能词元中采样。",
        "beta": "回答每偏离起点一个 nat，从奖励中扣除多少。",
        "normalize_advantages": "把优势减去均值，再除以整步的标准差。",
        "epsilon": "在同一批回答上，整个回答的概率最多可下降的比例，超过便不再计入。",
        "epsilon_high": "最多可上升的比例。不填则等于 epsilon。",
        "iterations": "每批回答上做多少次优化器更新。",
        "mask_truncated": "不从被截断的回答中学习；它们的奖励仍参与比较。",
        "max_kl": "模型离起点太远时停止（每词元平均 KL，单位 nat）。若 beta 为 0，只在四分之一的提示上测量；null 则完全不测量。",
        "vllm": "由一台正在运行的 vLLM 服务器写回答，填其地址，例如 http://127.0.0.1:8000/v1；每批回答之前都会把当前适配器交给它。不填则由 Luthier 自己的引擎生成。用于方法 lora。",
    }
    example: ClassVar[dict[str, object]] = {
        "reward": {"kind": "length", "at_most": 40, "slack": 40},
        "max_new_tokens": 64,
    }
    example_data: ClassVar[str] = "starter:story_prompts"
    data_form: ClassVar[DataForm] = "prompt"
    learning_rate_factor: ClassVar[float] = 0.1

    def problems(self, facts: StageFacts) -> list[Problem]:
        return rollout_problems(facts, self.vllm)

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.max_new_tokens, self.temperature, self.top_p)

    def ran_away(self, kl: float) -> bool:
        return self.max_kl is not None and kl > self.max_kl

    @property
    def answers(self) -> int:
        return self.num_generations

    @property
    def updates(self) -> int:
        return self.iterations

    @property
    def compares_with_start(self) -> bool:
        return self.beta > 0 or self.max_kl is not None

    @property
    def learns_from_start(self) -> bool:
        return self.beta > 0

    @property
    def wants_values(self) -> bool:
        return False

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the objective with the reward's paths made absolute."""
        return self.model_copy(update={"reward": self.reward.located(find)})

    def learn(self, groups: Sequence[Group], state: nn.Module | None) -> tuple[list[Example], dict[str, float]]:
        """Return the groups with the advantage of each answer."""
        rewards_PG = rewards_of(groups)
        if self.beta:
            for row, group in zip(rewards_PG, groups):
                moved = [old.sum() - start.sum() for old, start in zip(*map(group.per_answer, ("old", "start")))]
                row -= [self.beta * float(far) for far in moved]
        advantages_PG = leave_one_out(rewards_PG)
        if self.normalize_advantages:
            advantages_PG = (advantages_PG - advantages_PG.mean()) / (advantages_PG.std(ddof=1) + SMALL)
        examples = []
        for group, advantages_G in zip(groups, advantages_PG):
            unused = (*(["old"] if self.iterations == 1 else []), "start")
            example = with_numbers(without(group.example, *unused), {"advantage": advantages_G})
            examples.append(kept_answers(example, ~group.is_truncated) if self.mask_truncated else example)
        return examples, {}

    def parts(self, examples: Sequence[Example], draw: np.random.Generator) -> list[list[Example]]:
        """Return all examples, once for each optimizer step."""
        return [list(examples)] * self.iterations

    def count(self, batch: Batch) -> float:
        """Return the number of answers."""
        return float(len(batch.lengths))

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum over answers of the clipped surrogate."""
        logps_M = model.logps(batch, self.temperature)
        old_M = batch.token_extras.get("old", logps_M.detach())
        ratio_S = sums(logps_M - old_M, batch).exp()
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        loss_S, is_clipped_S = clipped(ratio_S, batch.extras["advantage"], self.epsilon, high)
        return LossSum(loss_S.sum(), {"clip_fraction": is_clipped_S.sum()})
