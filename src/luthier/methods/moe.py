"""Mixtures of experts: train experts and routers of a mixture, or make one of a dense model or of several runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, head_parameters, sizes, trainable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from luthier.core.batch import Batch

_BALANCE = 0.001
"""transformers' own coefficient of the balance loss."""


class Upcycle(BaseModel):
    """How a dense model becomes a mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    experts: int = Field(ge=2)
    """How many experts each layer gets; each begins as a copy of the dense feed-forward. 4 or 8 is usual."""
    top_k: int = Field(default=2, ge=1)
    """How many experts each token goes to. With 1, only the balance loss trains the router."""
    noise: float = Field(default=0.0, ge=0)
    """Noise added to each copy, as a share of the matrix's standard deviation. 0 starts exactly at the dense model."""
    seed: int = 0
    """Seed of the new routers and of the noise."""


class Join(BaseModel):
    """How runs become the experts of one mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    runs: tuple[str, ...] = Field(min_length=2)
    """Run folders or model folders, all trained from the recipe's model; run i becomes expert i."""
    top_k: int = Field(default=2, ge=1)
    """How many experts each token goes to."""
    seed: int = 0
    """Seed of the new routers."""


class Moe(Method):
    """Train the experts and routers of a mixture."""

    kind: Literal["moe"] = "moe"

    train: Literal["experts", "router", "experts_and_router", "all"] | None = None
    """What is trained: experts, router, experts_and_router, or all. Left out: the experts of a model that is a mixture, all of an upcycled one, the router of a joined one."""
    update: Literal["full", "lora"] | None = None
    """How: full trains the weights themselves, lora low-rank updates beside them (the router is always trained in full). Left out: lora for a model that is a mixture, full for a new one."""
    experts: tuple[int, ...] = ()
    """Numbers of the experts to train in each layer, counted from 0; the others keep their bits. Left out: every expert."""
    rank: int = Field(default=8, ge=1)
    """With update lora: rank of the update of each expert. 4 to 16 is usual, for there are many experts."""
    alpha: float = Field(default=16.0, gt=0)
    """With update lora: the update is scaled by alpha / rank."""
    router_aux_loss: float | None = Field(default=None, ge=0)
    """Weight of the loss that keeps the experts evenly used. Left out: 0.001 where the router is trained, else 0. More (0.01) where the report shows experts without tokens."""
    upcycle: Upcycle | None = None
    """Make a dense model (Llama, Mistral, Qwen2, Qwen3) a mixture first: how many experts each layer gets, top_k (2) of them for each token; optional noise and seed."""
    join: Join | None = None
    """Make one mixture of several runs first, each an expert of its task: a list of run or model folders, trained from the recipe's model; or a mapping with runs, top_k (2) and seed."""

    title: ClassVar[str] = "Mixture of experts"
    summary: ClassVar[str] = (
        "Train experts and routers of a mixture, or make a mixture of a dense model or of several runs."
    )
    principle: ClassVar[str] = (
        "In each layer a router sends a token to a few of many feed-forwards, the experts. Of a mixture, chosen experts, "
        "the router or everything is trained. A dense model is upcycled by copying its feed-forward: since the weights of "
        "the chosen experts sum to one, it starts as the dense model, and the copies grow apart. Runs that were trained "
        "apart on their own data are joined as experts under a new router, which learns whom to ask. A balance loss "
        "keeps the router from using a few experts only."
    )
    equation: ClassVar[str] = (
        "y = Σ_{i ∈ top-k} p_i / Σ_j p_j · FFN_i(x),  p = softmax(W_r x);  L = L_task + λ · E · Σ_i f_i · P_i"
    )
    paper: ClassVar[str] = (
        "Komatsuzaki et al. 2022, Sparse Upcycling, arXiv:2212.05055; Sukhbaatar et al. 2024, Branch-Train-MiX, "
        "arXiv:2403.07816; Fedus et al. 2021, Switch Transformers, arXiv:2101.03961"
    )
    moves: ClassVar[str] = "the chosen experts, the routers, or all of a mixture"
    typical_share: ClassVar[str] = "0.1 to 100 %"
    when: ClassVar[str] = (
        "The model is a mixture (Mixtral, Qwen-MoE, OLMoE); or a dense model should know more at nearly the same cost "
        "for each token; or several teams train experts apart that are to be one model."
    )
    when_not: ClassVar[str] = (
        "Little memory: every expert is held, though few are used. Little data: copies of one feed-forward need many "
        "tokens to grow apart."
    )
    zh: ClassVar[dict[str, str]] = {
        "title": "混合专家（MoE）",
        "summary": "训练混合专家模型的专家与路由器，或把一个稠密模型、若干次训练的结果变成混合专家模型。",
        "principle": "每层的路由器把词元送往众多前馈网络（专家）中的少数几个。对已有的混合专家模型，可训练选定的专家、路由器或全部参数。稠密模型可以“升级改造”：复制其前馈网络作为各个专家；被选专家的权重之和为一，因此起点与稠密模型相同，之后各副本逐渐分化。分别在各自数据上训练的模型可合并为同一模型的专家，由新的路由器学习该问哪一个。均衡损失防止路由器只用少数专家。",
        "moves": "选定的专家、路由器，或混合专家模型的全部参数",
        "when": "模型本身是混合专家（Mixtral、Qwen-MoE、OLMoE）；希望稠密模型容量更大而每个词元的计算量几乎不变；多方分别训练专家，最后合成一个模型。",
        "when_not": "内存不足时：所有专家都要装入内存，尽管每次只用几个。数据很少时：同一前馈网络的副本需要大量词元才能分化。",
        "train": "训练哪一部分：experts（专家）、router（路由器）、experts_and_router（两者）或 all（全部）。不写时：已有的混合专家模型训练专家，升级改造的模型训练全部，合并的模型训练路由器。",
        "update": "训练方式：full 直接训练权重，lora 在旁边训练低秩更新（路由器总是完整训练）。不写时：已有的混合专家模型用 lora，新造的用 full。",
        "experts": "每层要训练的专家编号，从 0 数起；其余专家逐位不变。不写则训练所有专家。",
        "rank": "update 为 lora 时：每个专家更新的秩。专家很多，通常 4 到 16 即可。",
        "alpha": "update 为 lora 时：更新按 alpha / rank 缩放。",
        "router_aux_loss": "使各专家使用均衡的损失的权重。不写时：训练路由器则为 0.001，否则为 0。报告中有专家分不到词元时可加大（如 0.01）。",
        "upcycle": "先把稠密模型（Llama、Mistral、Qwen2、Qwen3）变成混合专家模型：experts 为每层的专家数，top_k（默认 2）为每个词元选用的专家数；另可设 noise（噪声）和 seed（种子）。",
        "join": "先把若干次训练的结果合并成一个混合专家模型，每个结果是其任务的专家：写成运行目录或模型目录的列表（都须从本配方的模型训练而来）；或写成含 runs、top_k（默认 2）和 seed 的映射。",
    }
    default_learning_rate: ClassVar[float] = 1e-4
    example: ClassVar[dict[str, object]] = {"upcycle": {"experts": 4, "top_k": 2}}
    sums_in_another_order: ClassVar[bool] = True

    @field_validator("join", mode="before", json_schema_input_type=tuple[str, ...] | Join | None)
    @classmethod
    def _list_of_runs(cls, value: object) -> object:
        return {"runs": value} if isinstance(value, list | tuple) else value

    # ------------------------------------------------------------------ what was left out

    @property
    def freezes_most(self) -> bool:  # type: ignore[override]  # a class variable where it does not depend on fields
        return self._is_lora or self._part == "router" or (self._part != "all" and bool(self.experts))

    @property
    def changes_architecture(self) -> bool:
        return self.upcycle is not None or self.join is not None

    @property
    def _part(self) -> str:
        return self.train or ("router" if self.join else "all" if self.upcycle else "experts")

    @property
    def _is_lora(self) -> bool:
        return (self.update or ("full" if self.changes_architecture else "lora")) == "lora" and self._part != "router"

    @property
    def _trains_router(self) -> bool:
        return self._part != "experts"

    @property
    def _trains_experts(self) -> bool:
        return self._part != "router"

    @property
    def _saves_whole_model(self) -> bool:
        """A new mixture is written as a folder that opens by itself; so is a mixture that moves as a whole."""
        return not self._is_lora and (self.changes_architecture or (self._part == "all" and not self.experts))

    @property
    def _saves_for_peft(self) -> bool:
        return self._is_lora and not self.changes_architecture

    # ------------------------------------------------------------------ what cannot be

    def located(self, find: Callable[[str], Path]) -> Self:
        if self.join is None:
            return self
        runs = tuple(str(place) if (place := find(run)).exists() else run for run in self.join.runs)
        return self.model_copy(update={"join": self.join.model_copy(update={"runs": runs})})

    def problems(self, facts: StageFacts) -> list[Problem]:
        return [*self._contradictions(), *(self._misfits(facts.model_config) if facts.model_config else [])]

    def _contradictions(self) -> list[Problem]:
        found = []
        if self.upcycle and self.join:
            what = "A model is either upcycled or joined of runs."
            found.append(Problem(what, where="method", remedy="keep one of upcycle and join"))
        if self._part == "router" and (self.experts or self.update == "lora"):
            key = "experts" if self.experts else "update"
            what = f"{key} has no effect where the router alone is trained."
            found.append(Problem(what, f"method.{key}", "remove it, or use train: experts_and_router"))
        plain = {name: type(self).model_fields[name].default for name in ("rank", "alpha")}
        if not self._is_lora and (self.rank, self.alpha) != (plain["rank"], plain["alpha"]):
            what = "rank and alpha have no effect where no low-rank update is trained."
            found.append(Problem(what, "method.rank", "remove them, or set update: lora"))
        if self.join and self._is_lora:
            what = "A low-rank update would stand on a joined model that no folder holds."
            remedy = "use update: full; or join first, and train the joined folder with kind: moe"
            found.append(Problem(what, "method.update", remedy))
        new = self.upcycle or self.join
        if new and new.top_k == 1 and not self._balance:
            what = "With top_k: 1 the chosen expert's weight is always one, so nothing would train the router."
            found.append(Problem(what, "method", "use top_k: 2, or set router_aux_loss"))
        count = self._new_experts()
        if new and new.top_k > count:
            what = f"A token cannot go to {new.top_k} of {count} experts."
            found.append(Problem(what, "method", f"set top_k to {count} or less"))
        if len(set(self.experts)) < len(self.experts):
            found.append(Problem("experts names one twice.", "method.experts", "name each once"))
        return found

    def _misfits(self, config: Mapping[str, object]) -> list[Problem]:
        """Return what the model's config forbids."""
        from luthier.models.mixture import MIXTURE_OF, MIXTURES, unknown_mixture, why_not_upcycled

        count, kind = config.get("num_local_experts") or config.get("num_experts"), config.get("model_type")
        found = []
        if isinstance(count, int) and count > 1:
            if kind not in MIXTURES:
                found.append(unknown_mixture(str(kind)))
            elif self.changes_architecture:
                key = "upcycle" if self.upcycle else "join"
                what = f"The model is a mixture of {count} experts already."
                found.append(Problem(what, f"method.{key}", f"remove {key}, or give the dense model"))
        elif not self.changes_architecture:
            remedy = "upcycle it with `method: {kind: moe, upcycle: {experts: 4, top_k: 2}}`"
            if kind not in MIXTURE_OF:
                remedy = "give a mixture such as Mixtral; for this model use lora or full"
            return [Problem(f"The model ({kind}) is dense: it has no experts and no router.", "method", remedy)]
        else:
            reason = why_not_upcycled(dict(config))
            if reason:
                key = "upcycle" if self.upcycle else "join"
                found.append(Problem(reason, f"method.{key}", "give another model, or use lora or full"))
            count = self._new_experts()
        outside = [i for i in self.experts if not 0 <= i < count] if isinstance(count, int) else []
        if outside:
            what = f"There is no expert {outside[0]} among {count}."
            found.append(Problem(what, "method.experts", f"choose from 0 to {int(count) - 1}"))  # type: ignore[call-overload]
        return found

    def _new_experts(self) -> int:
        return self.upcycle.experts if self.upcycle else len(self.join.runs) if self.join else 0

    # ------------------------------------------------------------------ what is trained

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.moe_experts import LoraExperts, TrainedExperts, add_update
        from luthier.methods.modules.moe_routing import watch
        from luthier.methods.modules.peft_files import to_float32
        from luthier.models.mixture import mixtures

        wrong = [*self._contradictions(), *self._misfits(model.config.to_dict())]
        if wrong:
            raise ModelError(*wrong)
        self._make_mixture(model)
        layers = mixtures(model)
        model.requires_grad_(self._part == "all" and not self._is_lora)
        if self._part == "all" and self._is_lora:
            self._lora().apply(model)
        for layer in layers:
            layer.router.requires_grad_(self._trains_router)
            chosen = self._chosen(layer.count)
            if self._trains_experts and self._is_lora:
                add_update(layer.experts, LoraExperts(chosen, *layer.fused, self.rank, self.alpha))
            elif self._trains_experts and len(chosen) < layer.count:
                add_update(layer.experts, TrainedExperts(chosen, *layer.fused))
            else:
                layer.experts.requires_grad_(self._trains_experts)
        to_float32(model)
        watch(model, layers)

    def _make_mixture(self, model: PreTrainedModel) -> None:
        from luthier.models.mixture import become_mixture

        if self.upcycle:
            new = self.upcycle
            become_mixture(model, new.experts, new.top_k, new.noise, new.seed)
        elif self.join and model.device.type == "meta":  # sizes are wanted, and they do not depend on the runs
            become_mixture(model, len(self.join.runs), self.join.top_k)
        elif self.join:
            from luthier.methods.modules.task_experts import join_runs

            join_runs(model, self.join.runs, self.join.top_k, self.join.seed)

    def _chosen(self, count: int) -> tuple[int, ...]:
        return tuple(sorted(self.experts)) or tuple(range(count))

    def _lora(self) -> Method:
        """Return LoRA for the matrices outside of the experts."""
        from luthier.methods.lora import Lora

        return Lora(
            rank=self.rank, alpha=self.alpha, targets="attention" if self.changes_architecture else "all-linear"
        )

    def count(self, model: PreTrainedModel) -> int:
        from luthier.models.mixture import mixtures, shared_expert_size

        if self.changes_architecture:
            c, count = model.config, self._new_experts()
            layers = [(count, c.hidden_size, c.intermediate_size)] * c.num_hidden_layers
            fixed = sum(s for n, s in self._outside(model).items() if ".mlp." not in n)
            fixed += shared_expert_size(c.model_type, c.hidden_size) * len(layers)
        else:
            found = mixtures(model)
            layers = [m.sizes for m in found]
            inside = tuple(f"{m.name}.{part}." for m in found for part in ("gate", "experts"))
            fixed = sum(s for n, s in self._outside(model).items() if not n.startswith(inside))
        total = 0
        if self._part == "all":
            total += self._lora().count(model) if self._is_lora else fixed
        for count, hidden, inner in layers:
            each = self.rank * (2 * hidden + 3 * inner) if self._is_lora else 3 * hidden * inner
            total += len(self._chosen(count)) * each if self._trains_experts else 0
            total += count * hidden if self._trains_router else 0
        return total

    def _outside(self, model: PreTrainedModel) -> dict[str, int]:
        """Return the sizes of all parameters but a classifier's head, which is counted apart."""
        head = set(head_parameters(model))
        return {n: s for n, s in sizes(model).items() if n not in head}

    # ------------------------------------------------------------------ the routers' loss, and what they did

    @property
    def _balance(self) -> float:
        if self.router_aux_loss is not None:
            return self.router_aux_loss
        return _BALANCE if self._trains_router else 0.0

    def init_state(self, model: PreTrainedModel, total_steps: int, steps_per_epoch: int) -> dict[str, Tensor]:
        from luthier.methods.modules.moe_routing import routing_of

        return routing_of(model).new_state(model.device)

    def penalty(self, model: PreTrainedModel, batch: Batch) -> Tensor | None:
        """Return the weighted balance loss of the routers, padding left out, as transformers defines it."""
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        from luthier.methods.modules.moe_routing import routing_of

        routing = routing_of(model)
        logits = routing.take()
        if not logits:
            return None
        routing.add(logits, batch.attention_mask)
        if not self._balance:
            return None
        gates = tuple(layer.float() for layer in logits)
        return self._balance * load_balancing_loss_func(gates, routing.experts, routing.top_k, batch.attention_mask)  # type: ignore[arg-type]

    def after_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        from luthier.methods.modules.moe_routing import routing_of

        routing_of(model).step(state)

    def report(self, model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, object]:
        """Return how the routers sent the tokens of the last steps, and the parameters that one token passes."""
        from luthier.methods.modules.moe_routing import routing_of
        from luthier.models.mixture import active_parameters

        return {"routing": routing_of(model).report(state), "active_parameters": active_parameters(model)}

    # ------------------------------------------------------------------ folders

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write a whole Hugging Face folder, an adapter for PEFT, or the trained tensors beside the base's name."""
        from luthier.methods.modules import moe_files

        if self._saves_whole_model:
            moe_files.save_whole(model, folder)
        elif self._saves_for_peft:
            moe_files.save_adapter(model, folder, base, self.rank, self.alpha, self._trains_router)
        else:
            super().save(model, folder, base)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        from luthier.methods.modules import moe_files

        if self._saves_whole_model:
            tensors = moe_files.read_whole(model, folder)
            trained = trainable(model)
            self.load_state_dict(model, {n: t for n, t in tensors.items() if n in trained})
            for name, parameter in model.named_parameters():
                if name in tensors:  # of a joined model, no other place holds what is frozen
                    parameter.data.copy_(tensors[name])
        elif self._saves_for_peft:
            self.load_state_dict(model, moe_files.read_adapter(model, folder))
        else:
            super().load(model, folder)

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Write every update into the weights; what remains is a plain mixture."""
        from luthier.methods.modules.moe_experts import fold_in
        from luthier.methods.modules.moe_routing import unwatch
        from luthier.models.mixture import mixtures

        for layer in mixtures(model):
            fold_in(layer.experts)
        unwatch(model)
        return self._lora().merge(model) if self._is_lora and self._part == "all" else model
