"""Contender `loop`: a plain PyTorch loop. What anyone can attain by hand with transformers and PEFT.

No padding: the sequences of a step stand in one row and never attend to each other. Chosen and rejected are whole
sequences, each with its prompt. The output layer is computed at the answers only, a chunk at a time. The reference is
the model with its adapter switched off, once per step.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM

from dpo_cases import BETA, MODEL
from dpo_meter import Task, TokenRow, read_task, write_result
from sft_cases import LORA_ALPHA, LORA_RANK
from sft_loop import CHUNK_POSITIONS, segment_attention
from sft_meter import Meter


class ChunkedLogProbs(torch.autograd.Function):
    """Log-probabilities of given tokens; gradients are made in the forward pass, a chunk of positions at a time."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_N: torch.Tensor,
    ) -> torch.Tensor:
        """Return (N,) log-probabilities."""
        gradient_ND = torch.empty_like(hidden_ND)
        found_N = hidden_ND.new_empty(len(labels_N))
        for start in range(0, len(labels_N), CHUNK_POSITIONS):
            rows = slice(start, start + CHUNK_POSITIONS)
            logits_NV = hidden_ND[rows] @ weight_VD.T
            picked_N1 = labels_N[rows].unsqueeze(1)
            normaliser_N = logits_NV.logsumexp(dim=1)
            found_N[rows] = logits_NV.gather(1, picked_N1).squeeze(1) - normaliser_N
            if ctx.needs_input_grad[0]:
                probabilities_NV = logits_NV.sub_(normaliser_N.unsqueeze(1)).exp_().neg_()
                probabilities_NV.scatter_add_(1, picked_N1, torch.ones_like(picked_N1, dtype=logits_NV.dtype))
                torch.mm(probabilities_NV, weight_VD, out=gradient_ND[rows])
        ctx.save_for_backward(gradient_ND)
        return found_N

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, above_N: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Scale the stored gradients row by row, in place: they are used once."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND.mul_(above_N.unsqueeze(1)), None, None


def make_model(task: Task) -> torch.nn.Module:
    """Load the weights, and add LoRA."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(
        task.folder / "model", dtype=torch.float32, attn_implementation="segments"
    )
    adapter = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, adapter)


def answer_logps(model: torch.nn.Module, rows: list[TokenRow]) -> torch.Tensor:
    """Return the summed log-probabilities of all chosen answers, then of all rejected ones."""
    sequences = [
        (row["prompt_ids"] + row[side], len(row["prompt_ids"]))
        for side in ("chosen_ids", "rejected_ids")
        for row in rows
    ]
    lengths = [len(ids) for ids, _ in sequences]
    tokens_T = torch.tensor([token for ids, _ in sequences for token in ids])
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    predict_N = torch.cat(
        [torch.arange(s + prompt - 1, s + len(ids) - 1) for s, (ids, prompt) in zip(starts, sequences, strict=True)]
    )
    core = model.base_model.model
    hidden_TD = core.model(
        input_ids=tokens_T[None], position_ids=positions_T[None], use_cache=False, segment_lengths=lengths
    ).last_hidden_state[0]
    found_N = ChunkedLogProbs.apply(hidden_TD[predict_N], core.lm_head.weight, tokens_T[predict_N + 1])
    parts = found_N.split([len(ids) - prompt for ids, prompt in sequences])
    return torch.stack([part.sum() for part in parts])


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: list[TokenRow]) -> float:
    """Train on one batch and return its mean loss per pair."""
    with torch.no_grad(), model.disable_adapter():
        reference = answer_logps(model, rows)
    chosen, rejected = (answer_logps(model, rows) - reference).chunk(2)
    loss = -functional.logsigmoid(BETA * (chosen - rejected)).mean()
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
        [p for p in model.parameters() if p.requires_grad], lr=MODEL.learning_rate, weight_decay=0.0, fused=True
    )
    meter = Meter()
    meter.before_first_step()
    for step in range(task.steps):
        meter.losses.append(train_step(model, optimizer, task.batch(step)))
        meter.after_step()
    write_result(meter, task)


if __name__ == "__main__":
    main()
