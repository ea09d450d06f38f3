"""Several adapters on one base: name them, switch between them, stack them, and merge them into one.

An adapter remembers the fingerprint of the base it was trained on and is refused on any other.

linear       Σ w_i ΔW_i, exactly; the ranks add up, unless `rank` asks for the nearest update of a lower rank
ties         trim the smallest numbers, elect a sign, average what agrees (Yadav et al. 2023, arXiv:2306.01708)
dare_linear  drop numbers at random, scale up the rest, add (Yu et al. 2023, arXiv:2311.03099)
dare_ties    drop as DARE, then elect signs as TIES

PEFT does the arithmetic. Without `rank` it applies TIES and DARE to the factors A and B, which keeps the rank but
multiplies the factors of one adapter by those of another; with `rank` it applies them to ΔW itself, as the papers do,
and cuts the result by SVD. PEFT's own "linear" mixes factors too and is no weighted sum; linear here is its "cat".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from luthier.core.errors import Problem, RunError
from luthier.core.rundir import STATE, disk_fault, read_json, write_json

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer, LoraModel

    from luthier.models.loaded import LoadedModel

Combination = Literal["linear", "ties", "dare_linear", "dare_ties"]
CONFIG = "adapter_config.json"
BASE = "base.json"
"""In an adapter's folder: the base model that it opens on, and that model's fingerprint."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that take the first update out of the base weights: opened, such an adapter changes the base for all."""


class AdapterSet:
    """LoRA adapters by name on one base model, whose module they change in place. At first none is active."""

    def __init__(self, base: LoadedModel) -> None:
        self.base = base
        self.folders: dict[str, Path] = {}
        self._peft: PeftModel | None = None

    def add(self, name: str, folder: Path) -> None:
        """Open an adapter under a name. What was active stays so.

        Raises:
            RunError: the name is taken, the folder holds no LoRA adapter, or one of another base.
        """
        if name in self.folders:
            raise RunError(Problem(f'There is already an adapter "{name}".', str(folder), "give it another name"))
        _require_lora(folder)
        _require_base(folder, self.base)
        self._load(name, folder)
        self.folders[name] = folder

    def names(self) -> list[str]:
        """Return the adapters there are, in the order in which they came."""
        return list(self.folders)

    def use(self, name: str) -> None:
        """Make one adapter the active one."""
        self._activate([name])

    def stack(self, names: Sequence[str]) -> None:
        """Make several adapters active at once: their updates add up.

        Raises:
            RunError: one of them is more than an update, so that there is no sum.
        """
        self._require_updates(names)
        self._activate(names)

    def off(self) -> None:
        """Make the model the base again."""
        if self._peft is not None:
            self._peft.base_model.disable_adapter_layers()  # type: ignore[operator]

    def merge(
        self,
        name: str,
        names: Sequence[str],
        weights: Sequence[float],
        method: Combination = "linear",
        *,
        density: float = 0.5,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        """Make a new adapter `name` of several others.

        Args:
            weights: one for each; they need not add up to 1, and may be negative.
            density: the share of numbers that TIES and DARE keep.
            rank: of the result; None keeps what the method needs without cutting.
            seed: decides which numbers DARE drops.

        Raises:
            RunError: the adapters cannot be merged in this manner.
        """
        if len(weights) != len(names) or not all(math.isfinite(w) for w in weights):
            what = f"There are {len(names)} adapters and {len(weights)} weights."
            raise RunError(Problem(what, "weights", "give one number for each adapter"))
        if not 0 < density <= 1:
            raise RunError(Problem(f"The density {density} keeps nothing.", "density", "give more than 0, at most 1"))
        if not any(weights):
            raise RunError(
                Problem("All weights are 0, so nothing would be left.", "weights", "make one of them larger")
            )
        self._require_updates(names)
        if name in self.folders:
            raise RunError(Problem(f'There is already an adapter "{name}".', name, "give the merged one another name"))
        self._require_factors(names, method, rank)
        combination = {"linear": "cat"}.get(method, method) if rank is None else _BY_SVD[method]
        with seeded(seed):
            try:
                self._lora.add_weighted_adapter(
                    list(names),
                    list(weights),
                    name,
                    combination_type=combination,  # type: ignore[arg-type]
                    svd_rank=rank,
                    svd_full_matrices=False,  # the full ones of a 7B model would need gigabytes and be cut off
                    density=density,
                )
            except (ValueError, TypeError) as error:
                raise RunError(Problem(f"PEFT cannot merge these adapters: {error}", ", ".join(names))) from error
        self._unscale(name)
        self.folders[name] = Path()

    def save(self, name: str, folder: Path) -> None:
        """Write an adapter as PEFT opens it, with the base's fingerprint.

        Raises:
            RunError: the folder cannot be written.
        """
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        try:
            folder.mkdir(parents=True, exist_ok=True)
            config = self._config(name)
            config.base_model_name_or_path = self.base.path
            config.inference_mode = True
            config.save_pretrained(str(folder))
            assert self._peft is not None
            tensors = get_peft_model_state_dict(self._peft, adapter_name=name)
            kept = {n: t.detach().float().contiguous().cpu() for n, t in tensors.items()}
            save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            write_base(folder, self.base)
        except Exception as error:
            fault = disk_fault(folder, error)
            if fault is None:
                raise
            raise fault from error

    def rank(self, name: str) -> int:
        """Return the rank of an adapter."""
        return self._config(name).r

    def layers(self) -> Iterator[tuple[str, LoraLayer]]:
        """Yield the layers that adapters change, by the names of the modules they stand for."""
        from peft.tuners.lora import LoraLayer

        for name, module in self.base.module.named_modules():
            if isinstance(module, LoraLayer):
                yield name, module

    # ------------------------------------------------------------------ inside

    @property
    def _lora(self) -> LoraModel:
        assert self._peft is not None
        return cast("LoraModel", self._peft.base_model)

    def _config(self, name: str) -> LoraConfig:
        return cast("LoraConfig", self._lora.peft_config[name])

    def _load(self, name: str, folder: Path) -> None:
        from peft import PeftModel

        was_training = self.base.module.training
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.base.module, str(folder), adapter_name=name)
                self.off()
            else:
                self._peft.load_adapter(str(folder), name)
        except (RuntimeError, ValueError, KeyError, OSError) as error:  # misshapen, missing, damaged tensors
            reason = str(error).strip().splitlines()[-1].strip()
            remedy = "use it with the model it was trained on"
            raise RunError(
                Problem(f"The adapter does not open on this model ({reason}).", str(folder), remedy)
            ) from error
        self.base.module.train(was_training)

    def _activate(self, names: Sequence[str]) -> None:
        unknown = [n for n in names if n not in self.folders]
        if unknown or not names:
            there = ", ".join(self.folders) or "none yet"
            what = f'There is no adapter "{unknown[0]}".' if unknown else "No adapter is named."
            raise RunError(Problem(what, "adapters", f"there are: {there}"))
        self._lora.enable_adapter_layers()
        if len(names) == 1:
            assert self._peft is not None
            self._peft.set_adapter(names[0], inference_mode=True)
        else:
            self._lora.set_adapter(list(names), inference_mode=True)

    def _require_updates(self, names: Sequence[str]) -> None:
        """Make sure that each adapter is a sum of low-rank updates and nothing else."""
        problems = []
        for name in names:
            if name not in self.folders:
                there = ", ".join(self.folders) or "none yet"
                problems.append(Problem(f'There is no adapter "{name}".', "adapters", f"there are: {there}"))
                continue
            more = _beyond_updates(self._config(name))
            if more:
                remedy = "use it alone, or train one without that"
                problems.append(Problem(f"The adapter has {more}, which does not add up.", name, remedy))
        if problems:
            raise RunError(*problems)

    def _require_factors(self, names: Sequence[str], method: str, rank: int | None) -> None:
        """Make sure that the factors can be combined one by one, where the method works on them."""
        if method == "linear" or rank is not None:
            return
        ranks = {name: self.rank(name) for name in names}
        uneven = any(self._config(name).rank_pattern for name in names)
        if len(set(ranks.values())) > 1 or uneven:
            said = ", ".join(f"{n} {r}{' and others' * bool(self._config(n).rank_pattern)}" for n, r in ranks.items())
            remedy = f"give the rank of the result, e.g. --rank {max(ranks.values())}: then whole updates are combined"
            raise RunError(Problem(f"{method} combines factors of one rank; these have {said}.", "method", remedy))

    def _unscale(self, name: str) -> None:
        """Make the merged factors count as they are.

        PEFT folds the parents' scaling into them and sets alpha to the rank, but keeps the first parent's rsLoRA, by
        which alpha over the square root of the rank would scale them once more.
        """
        self._config(name).use_rslora = False
        for _, layer in self.layers():
            if name in layer.scaling:
                layer.scaling[name] = 1.0


_BY_SVD = {"linear": "svd", "ties": "ties_svd", "dare_linear": "dare_linear_svd", "dare_ties": "dare_ties_svd"}


def update(layer: LoraLayer, name: str) -> Tensor | None:
    """Return an adapter's ΔW for one layer in float32; None where it leaves the layer alone."""
    if name not in layer.lora_A and name not in layer.lora_embedding_A:
        return None
    return cast("Tensor", layer.get_delta_weight(name)).detach().float()  # type: ignore[operator]


def write_base(folder: Path, base: LoadedModel) -> None:
    """Write into an adapter's folder on which base it opens."""
    write_json(folder / BASE, {"base_model": base.path, "base_fingerprint": base.fingerprint})


def fingerprint_of(folder: Path) -> str | None:
    """Return the fingerprint of the base that an adapter was trained on; None where the folder does not say."""
    for file in (folder / STATE, folder / BASE):
        if file.is_file():
            kept = read_json(file).get("base_fingerprint")
            if isinstance(kept, str) and kept:
                return kept
    return None


# ---------------------------------------------------------------------- refusals


def _require_lora(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        remedy = "give a run of a LoRA method, one of its checkpoints, or a folder that PEFT wrote"
        raise RunError(Problem(f"The folder holds no adapter (no {CONFIG}).", str(folder), remedy))
    config = read_json(folder / CONFIG)
    kind, start = config.get("peft_type"), str(config.get("init_lora_weights"))
    if kind != "LORA":
        raise RunError(Problem(f"This is an adapter of the kind {kind}; only LoRA adapters add up.", str(folder)))
    if start.lower().startswith(_CHANGES_BASE):
        what = f"The adapter starts from a part of the base weights ({start}) and would change the base for the others."
        raise RunError(
            Problem(what, str(folder), "convert it into a plain LoRA first (PEFT: path_initial_model_for_…)")
        )


def _require_base(folder: Path, base: LoadedModel) -> None:
    kept = fingerprint_of(folder)
    if kept is not None and kept != base.fingerprint:
        named = read_json(folder / CONFIG).get("base_model_name_or_path")
        raise RunError(
            Problem(
                f"The adapter was trained on another base model (fingerprint {kept}; {base.path} has "
                f"{base.fingerprint}).",
                str(folder),
                f"combine adapters of one base only; this one opens on {named}",
            )
        )


def _beyond_updates(config: LoraConfig) -> str:
    """Return what an adapter has besides low-rank updates, in words; empty for a plain LoRA."""
    parts = {
        "trained magnitudes (DoRA)": config.use_dora,
        f"whole modules ({', '.join(config.modules_to_save or ())})": config.modules_to_save,
        "trained token rows": config.trainable_token_indices,
        "trained biases": config.bias != "none" or config.lora_bias,
        "updates of fused experts": config.target_parameters,
    }
    return ", ".join(words for words, there in parts.items() if there)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed inside, and leave the generators outside as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
