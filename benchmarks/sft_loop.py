"""Contender `loop`: a plain PyTorch loop. What anyone can attain by hand with transformers and PEFT.

No padding: the rows of a step stand in one sequence and never attend to each other. The output layer is computed at
supervised positions only, a chunk at a time, so that no (tokens × vocabulary) matrix is ever held.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM

from sft_cases import LORA_ALPHA, LORA_RANK
from sft_meter import Meter, Task, read_task, write_result

CHUNK_POSITIONS = 256


def segment_attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segment_lengths: list[int] | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each segment of the one packed sequence (B = 1)."""
    lengths = segment_lengths or [query_BHTD.shape[2]]
    groups = query_BHTD.shape[1] // key_BHTD.shape[1]
    key_BHTD, value_BHTD = (x.repeat_interleave(groups, dim=1) for x in (key_BHTD, value_BHTD))
    pieces = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        for q, k, v in zip(
            query_BHTD.split(lengths, dim=2),
            key_BHTD.split(lengths, dim=2),
            value_BHTD.split(lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of token losses. Gradients are made in the forward pass, a chunk of positions at a time."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_N: torch.Tensor,
    ) -> torch.Tensor:
        """Return the scalar sum of cross-entropies."""
        gradient_ND = torch.empty_like(hidden_ND)
        gradient_VD = torch.zeros_like(weight_VD) if weight_VD.requires_grad else None
        total = hidden_ND.new_zeros(())
        for start in range(0, len(labels_N), CHUNK_POSITIONS):
            rows = slice(start, start + CHUNK_POSITIONS)
            logits_NV = hidden_ND[rows] @ weight_VD.T
            picked_N1 = labels_N[rows].unsqueeze(1)
            normaliser_N = logits_NV.logsumexp(dim=1)
            total += (normaliser_N - logits_NV.gather(1, picked_N1).squeeze(1)).sum()
            probabilities_NV = logits_NV.sub_(normaliser_N.unsqueeze(1)).exp_()
            probabilities_NV.scatter_add_(1, picked_N1, -torch.ones_like(picked_N1, dtype=logits_NV.dtype))
            torch.mm(probabilities_NV, weight_VD, out=gradient_ND[rows])
            if gradient_VD is not None:
                gradient_VD.addmm_(probabilities_NV.T, hidden_ND[rows])
        ctx.save_for_backward(gradient_ND, gradient_VD)
        return total

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Scale the stored gradients, in place: they are used once."""
        gradient_ND, gradient_VD = ctx.saved_tensors
        return gradient_ND.mul_(scale), None if gradient_VD is None else gradient_VD.mul_(scale), None


def make_model(task: Task) -> torch.nn.Module:
    """Load the weights, and add LoRA where the case says so."""
    model = AutoModelForCausalLM.from_pretrained(
        task.folder / "model", dtype=torch.float32, attn_implementation="segments"
    )
    if task.case.method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    return model


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: list[tuple[list[int], int]]) -> float:
    """Train on one batch and return its mean loss per supervised token."""
    lengths = [len(ids) for ids, _ in rows]
    tokens_T = torch.tensor([token for ids, _ in rows for token in ids])
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    # Position t predicts token t + 1, within its own row.
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    predict_N = torch.cat(
        [torch.arange(s + prompt - 1, s + len(ids) - 1) for s, (ids, prompt) in zip(starts, rows, strict=True)]
    )
    core = getattr(model, "base_model", model)
    core = core.model if hasattr(core, "peft_config") else model
    hidden_TD = core.model(
        input_ids=tokens_T[None],
        position_ids=positions_T[None],
        use_cache=False,
        segment_lengths=lengths,
    ).last_hidden_state[0]
    total = ChunkedCrossEntropy.apply(hidden_TD[predict_N], core.lm_head.weight, tokens_T[predict_N + 1])
    loss = total / len(predict_N)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def main() -> None:
    """Train and write the figures."""
    task = read_task()
    AttentionInterface.register("segments", segment_attention)
    model = make_model(task)
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=task.case.learning_rate,
        weight_decay=0.0,
        fused=True,
    )
    meter = Meter()
    meter.before_first_step()
    for step in range(task.steps):
        meter.losses.append(train_step(model, optimizer, task.batch(step)))
        meter.after_step()
    write_result(meter, task, model, sum(task.lengths()[len(task.batch(0)) :]))


if __name__ == "__main__":
    main()
