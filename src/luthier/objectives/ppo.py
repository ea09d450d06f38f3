"""PPO: the model answers, a critic learns what to expect, and what came better than expected becomes likelier.

Schulman et al. 2017, arXiv:1707.06347; with the per-token KL and its controller of Ziegler et al. 2019,
arXiv:1909.08593. Each token t of an answer earns −β·(log π_old − log π₀), and the last one the reward as well.

    Âₜ, Rₜ    by generalised advantage estimation (arXiv:1506.02438), Â then whitened over the step
    loss(t) = −min(ρ·Â, clip(ρ, 1 ± ε)·Â) + c_v·½·max((V − R)², (V_old + clip(V − V_old, ±ε_v) − R)²) − c_e·H
    β ← β·(1 + 0.1·clip(KL/target − 1, ±0.2))    where a target is given

The critic is one linear layer on the policy's own last hidden state.

Shape legend: M supervised tokens, N tokens of one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective
from luthier.objectives.rollouts import (
    Drawing,
    Group,
    clipped,
    generalised_advantages,
    in_equal_parts,
    rollout_problems,
    whitened,
)
from luthier.rewards.base import AnyReward

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.batch import Batch, Example
    from luthier.models.loaded import LoadedModel

KL_GAIN = 0.1
"""How fast an adapted KL coefficient follows, as in Ziegler et al."""
KL_STEP = 0.2
"""The error beyond which the KL coefficient moves no faster."""


class Ppo(Objective):
    """Let the model answer, and make likelier what a critic had not expected to be so good."""

    kind: Literal["ppo"] = "ppo"

    reward: AnyReward
    """What an answer is worth: a reward model (model), a function (file.py:function), judge, regex, or a sum."""
    max_new_tokens: int = Field(default=256, ge=1)
    """The longest answer in tokens; what has not ended by then is truncated."""
    temperature: float = Field(default=1.0, gt=0)
    """How freely answers are drawn: at 1 as the model has it. The loss sees the model at this temperature too."""
    iterations: int = Field(default=4, ge=1)
    """How often each set of answers is gone through."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps in which a set of answers is gone through once."""
    beta: float = Field(default=0.05, ge=0)
    """What each nat by which a token has moved away from the start costs of the reward."""
    target_kl: float | None = Field(default=None, gt=0)
    """Change beta by itself so that the mean KL of a token (in nats) comes to this."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """How far a token's probability may move in one set of answers, as a share of itself, before it stops counting."""
    epsilon_value: float | None = Field(default=0.2, gt=0)
    """How far the critic may move in one set of answers before it stops counting; null lets it go anywhere."""
    value_weight: float = Field(default=0.1, ge=0)
    """How much the critic's error counts beside the policy."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """How much a reward that comes one token later is worth."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Between trusting the critic (0) and what was really given (1)."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Reward the policy for staying undecided; keeps answers varied, and costs a second look at the logits."""
    whiten_rewards: bool = False
    """Bring rewards to the variance 1 in each set of answers. Advantages always are."""
    missing_end_penalty: float | None = Field(default=None, gt=0)
    """What an answer loses that had to stop before it ended (missing_eos_penalty of others)."""
    max_kl: float | None = Field(default=2.0, gt=0)
    """Stop the run when the model has moved this far from its start (mean KL of a token in nats)."""
    vllm: str | None = None
    """The address of a running vLLM server that writes the answers, such as http://127.0.0.1:8000/v1; it is given the
    adapter before each set of answers. Without it Luthier's own engine writes them. For method lora."""

    title: ClassVar[str] = "Proximal policy optimisation"
    summary: ClassVar[str] = "Reinforcement learning with a critic, a clipped step and a KL penalty."
    paper: ClassVar[str] = "Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347"
    zh: ClassVar[dict[str, str]] = {
        "title": "近端策略优化（PPO）",
        "summary": "带评论家、截断更新与 KL 惩罚的强化学习。",
        "reward": "回答的价值：奖励模型（model）、函数（file.py:function）、judge、regex，或它们的加权和。",
        "max_new_tokens": "回答最长多少个词元；到此仍未结束的即被截断。",
        "temperature": "采样温度：1 即模型本身。损失也按这个温度计算。",
        "iterations": "每批回答过多少遍。",
        "minibatches": "每过一遍分成多少次优化器更新。",
        "beta": "词元每偏离起点一个 nat，从奖励中扣除多少。",
        "target_kl": "自动调节 beta，使每词元平均 KL（nat）趋于此值。",
        "epsilon": "在同一批回答上，词元概率最多可变动的比例，超过便不再计入。",
        "epsilon_value": "在同一批回答上，评论家最多可变动多少；null 不限制。",
        "value_weight": "评论家的误差相对于策略算多少。",
        "gamma": "晚一个词元得到的奖励打几折。",
        "gae_lambda": "在相信评论家（0）与相信实际所得（1）之间。",
        "entropy_weight": "奖励策略保持不确定，使回答多样；要多看一遍 logits。",
        "whiten_rewards": "把每批回答的奖励化为方差 1。优势总是如此处理。",
        "missing_end_penalty": "未结束就被截断的回答扣多少分（其他工具的 missing_eos_penalty）。",
        "max_kl": "模型离起点太远时停止（每词元平均 KL，单位 nat）。",
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
        found = rollout_problems(facts, self.vllm)
        if self.minibatches > facts.batch_size:
            what = (
                f"minibatches is {self.minibatches}, more than the {facts.batch_size} answers of a step (batch_size)."
            )
            found.append(Problem(what, "objective.minibatches", f"set it to {facts.batch_size} or less"))
        return found

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.max_new_tokens, self.temperature)

    def ran_away(self, kl: float) -> bool:
        return self.max_kl is not None and kl > self.max_kl

    @property
    def answers(self) -> int:
        return 1

    @property
    def updates(self) -> int:
        return self.iterations * self.minibatches

    @property
    def compares_with_start(self) -> bool:
        return True

    @property
    def learns_from_start(self) -> bool:
        return True

    @property
    def wants_values(self) -> bool:
        return True

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the objective with the reward's paths made absolute."""
        return self.model_copy(update={"reward": self.reward.located(find)})

    def build_state(self, model: LoadedModel) -> nn.Module | None:
        """Return the critic, which the model's predictions ask from now on."""
        from luthier.models.critic import Critic

        hidden_size = int(model.module.config.get_text_config().hidden_size)
        model.critic = Critic(hidden_size, self.beta).to(model.device)
        return model.critic

    def learn(self, groups: Sequence[Group], state: nn.Module | None) -> tuple[list[Example], dict[str, float]]:
        """Return the answers with the advantages and returns of their tokens; adapt beta for the next set."""
        from luthier.models.critic import Critic

        assert isinstance(state, Critic)
        coefficient = float(state.kl_coefficient)
        earned = [self._earned(group, coefficient) for group in groups]
        borders = np.cumsum([len(rewards_N) for rewards_N in earned])[:-1]
        if self.whiten_rewards:
            earned = np.split(whitened(np.concatenate(earned), shift=False), borders)
        values = [group.example.token_extras["values"].astype(np.float64) for group in groups]
        advantages = [generalised_advantages(r, v, self.gamma, self.gae_lambda) for r, v in zip(earned, values)]
        returns = [a + v for a, v in zip(advantages, values)]
        examples = []
        white = np.split(whitened(np.concatenate(advantages)), borders)
        for group, advantage_N, return_N in zip(groups, white, returns):
            own = group.example.token_extras
            extras = {"old": own["old"], "values": own["values"], "advantages": advantage_N, "returns": return_N}
            examples.append(replace(group.example, token_extras=extras))
        told = {"explained_variance": _explained(np.concatenate(values), np.concatenate(returns))}
        if self.target_kl is not None:
            told["kl_coefficient"] = coefficient
            self._adapt(state, groups)
        return examples, told

    def parts(self, examples: Sequence[Example], draw: np.random.Generator) -> list[list[Example]]:
        """Return shuffled parts of the examples, for each time that they are gone through."""
        orders = [draw.permutation(len(examples)) for _ in range(self.iterations)]
        return [part for order in orders for part in in_equal_parts(examples, self.minibatches, order)]

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum over tokens of the losses of policy and critic."""
        import torch

        said = model.predictions(batch, self.temperature, with_entropies=self.entropy_weight > 0)
        assert said.values is not None
        extras, weights_M = batch.token_extras, batch.weights_M
        ratio_M = (said.logps - extras["old"]).exp()
        policy_M, is_clipped_M = clipped(ratio_M, extras["advantages"], self.epsilon, self.epsilon)
        error_M = (said.values - extras["returns"]) ** 2
        if self.epsilon_value is not None:
            moved_M = torch.clamp(said.values - extras["values"], -self.epsilon_value, self.epsilon_value)
            error_M = torch.maximum(error_M, (extras["values"] + moved_M - extras["returns"]) ** 2)
        loss_M = policy_M + self.value_weight * 0.5 * error_M
        if said.entropies is not None:
            loss_M = loss_M - self.entropy_weight * said.entropies

        def summed(values_M: Tensor) -> Tensor:
            return (values_M * weights_M).sum()

        metrics = {
            "clip_fraction": summed(is_clipped_M),
            "policy_loss": summed(policy_M.detach()),
            "value_loss": 0.5 * summed(error_M.detach()),
        }
        return LossSum(summed(loss_M), metrics)

    def _earned(self, group: Group, coefficient: float) -> np.ndarray:
        """Return what each token of an answer earns, (N,) float64."""
        extras = group.example.token_extras
        earned_N = -coefficient * (extras["old"].astype(np.float64) - extras["start"])
        penalty = self.missing_end_penalty if self.missing_end_penalty and group.is_truncated[0] else 0.0
        earned_N[-1] += group.rewards[0] - penalty
        return earned_N

    def _adapt(self, critic: nn.Module, groups: Sequence[Group]) -> None:
        assert self.target_kl is not None
        ratio = np.concatenate([g.example.token_extras["start"] - g.example.token_extras["old"] for g in groups])
        error = float((np.exp(ratio) - ratio - 1.0).mean()) / self.target_kl - 1.0
        coefficient = critic.get_buffer("kl_coefficient")
        coefficient.mul_(1.0 + KL_GAIN * min(max(error, -KL_STEP), KL_STEP))


def _explained(values: np.ndarray, returns: np.ndarray) -> float:
    """Return the share of the returns' variance that the critic had foreseen; 0 where nothing varies."""
    variance = float(returns.var())
    return 1.0 - float((returns - values).var()) / variance if variance > 1e-12 else 0.0
