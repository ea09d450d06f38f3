"""GRPO: answers to one prompt are judged against each other, so that no model of their value is needed.

Shao et al. 2024, DeepSeekMath, arXiv:2402.03300. With answers y₁ … y_G to a prompt, rewards r and the policy π_old that
wrote them,

    Âᵢ = (rᵢ − mean r) / std r          ρ = π(t) / π_old(t) at each token
    loss(t) = −min(ρ·Â, clip(ρ, 1 − ε, 1 + ε_high)·Â) + β·ρ·k₃,    k₃ = π₀/π − 1 − log(π₀/π)

ρ before k₃ makes the gradient that of the KL also where π has moved away from π_old (as TRL has it). ε_high > ε is
"clip-higher" (DAPO, Yu et al. 2025, arXiv:2503.14476). How tokens are averaged: `loss`.

Shape legend: M supervised tokens, S sequences.
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
    Drawing,
    Group,
    clipped,
    group_advantages,
    k3,
    kept_answers,
    rewards_of,
    rollout_problems,
    sums,
    with_numbers,
    without,
)
from luthier.rewards.base import AnyReward

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from luthier.core.batch import Batch, Example


class Grpo(Objective):
    """Let the model answer, and make what was better than its other answers to the same prompt likelier."""

    kind: Literal["grpo"] = "grpo"

    reward: AnyReward
    """What an answer is worth: a function (file.py:function), exact_match, regex, model, judge, logprob, or a sum."""
    num_generations: int = Field(default=8, ge=2)
    """How many answers to each prompt are compared with each other. batch_size counts prompts."""
    max_new_tokens: int = Field(default=256, ge=1)
    """The longest answer in tokens; what has not ended by then is truncated."""
    temperature: float = Field(default=1.0, gt=0)
    """How freely answers are drawn: at 1 as the model has it. The loss sees the model at this temperature too."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability."""
    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """How tokens are averaged: dapo over all of a step (bnpo of others is the same here), grpo over each answer first,
    so that long answers count no more; dr_grpo divides by max_new_tokens, so that length does not matter at all (Liu
    et al. 2025, arXiv:2503.20783)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What differences of reward are divided by: their spread among the answers to a prompt, their spread in the whole
    step, or nothing (Dr. GRPO)."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """How far a token's probability may fall in one set of answers, as a share of itself, before it stops counting."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """How far it may rise. Without it: epsilon. 0.28 keeps rare tokens alive (clip-higher, DAPO)."""
    beta: float = Field(default=0.0, ge=0)
    """How strongly the model is held near its start, by the KL divergence of each token."""
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

    title: ClassVar[str] = "Group relative policy optimisation"
    summary: ClassVar[str] = "Raise what a reward finds better among several answers to the same prompt."
    paper: ClassVar[str] = "Shao et al. 2024, DeepSeekMath, arXiv:2402.03300"
    zh: ClassVar[dict[str, str]] = {
        "title": "组相对策略优化（GRPO）",
        "summary": "对同一提示生成多个回答，提高其中奖励较高者的概率。",
        "reward": "回答的价值：函数（file.py:function）、exact_match、regex、model、judge、logprob，或它们的加权和。",
        "num_generations": "每个提示生成多少个回答互相比较。batch_size 数的是提示。",
        "max_new_tokens": "回答最长多少个词元；到此仍未结束的即被截断。",
        "temperature": "采样温度：1 即模型本身。损失也按这个温度计算。",
        "top_p": "只从概率之和达到此值的最可能词元中采样。",
        "loss": "词元如何平均：dapo 在整步的所有词元上平均（其他工具的 bnpo 在此与它相同）；grpo 先在每个回答内平均，长回答不占便宜；dr_grpo 除以 max_new_tokens，与长度完全无关。",
        "scale_rewards": "奖励差除以什么：同一提示的回答之间的标准差、整步的标准差，或不除（Dr. GRPO）。",
        "epsilon": "在同一批回答上，词元概率最多可下降的比例，超过便不再计入。",
        "epsilon_high": "最多可上升的比例。不填则等于 epsilon；0.28 可保住少见的词元（DAPO 的 clip-higher）。",
        "beta": "用每个词元的 KL 散度把模型拉在起点附近的力度。",
        "iterations": "每批回答上做多少次优化器更新。",
        "mask_truncated": "不从被截断的回答中学习；它们的奖励仍参与比较。",
        "max_kl": "模型离起点太远时停止（每词元平均 KL，单位 nat）。若 beta 为 0，只在四分之一的提示上测量；null 则完全不测量。",
        "vllm": "由一台正在运行的 vLLM 服务器写回答，填其地址，例如 http://127.0.0.1:8000/v1；每批回答之前都会把当前适配器交给它。不填则由 Luthier 自己的引擎生成。用于方法 lora。",
    }
    example: ClassVar[dict[str, object]] = {
        "reward": {"kind": "regex", "pattern": "friend|happy|smile"},
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
        advantages_PG = group_advantages(rewards_of(groups), self.scale_rewards)
        examples = []
        for group, advantages_G in zip(groups, advantages_PG):
            # The first step's policy is the one that wrote the answers: its ratio is 1, whatever rounding says.
            unused = (*(["old"] if self.iterations == 1 else []), *(["start"] if self.beta == 0 else []))
            example = with_numbers(without(group.example, *unused), {"advantage": advantages_G})
            examples.append(kept_answers(example, ~group.is_truncated) if self.mask_truncated else example)
        return examples, {}

    def parts(self, examples: Sequence[Example], draw: np.random.Generator) -> list[list[Example]]:
        """Return all examples, once for each optimizer step."""
        return [list(examples)] * self.iterations

    def count(self, batch: Batch) -> float:
        """Return what the batch's losses are divided by: its tokens, its answers, or its answers at their longest."""
        if self.loss == "dapo":
            return batch.count
        return len(batch.lengths) * (self.max_new_tokens if self.loss == "dr_grpo" else 1.0)

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum of the clipped surrogate, less what holds the model near its start."""
        logps_M = model.logps(batch, self.temperature)
        ratio_M = (logps_M - batch.token_extras.get("old", logps_M.detach())).exp()
        advantage_M = batch.extras["advantage"].index_select(0, batch.sequence_M)
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        loss_M, is_clipped_M = clipped(ratio_M, advantage_M, self.epsilon, high)
        if self.beta:
            loss_M = loss_M + self.beta * ratio_M * k3(logps_M, batch.token_extras["start"])
        return LossSum(self._summed(loss_M, batch), {"clip_fraction": self._mean_summed(is_clipped_M, batch)})

    def _summed(self, values_M: Tensor, batch: Batch) -> Tensor:
        sums_S = sums(values_M, batch)
        return (sums_S / _lengths(batch)).sum() if self.loss == "grpo" else sums_S.sum()

    def _mean_summed(self, values_M: Tensor, batch: Batch) -> Tensor:
        """Return a sum that the step's count turns into a mean."""
        if self.loss == "dr_grpo":
            return (sums(values_M, batch) / _lengths(batch)).sum() * self.max_new_tokens
        return self._summed(values_M, batch)


def _lengths(batch: Batch) -> Tensor:
    """Return Σ w of each answer, (S,), at least 1: an answer that counts for nothing has no tokens to divide by."""
    return sums(batch.weights_M.new_ones(len(batch.weights_M)), batch).clamp(min=1.0)
