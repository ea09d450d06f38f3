"""The page for those who come from another tool: its names, ours, and how to convert the value.

The conversions are those that `luthier check` gives when it meets such a name; here they are only sorted by tool.
"""

from __future__ import annotations

from luthier.run.config import Recipe
from luthier.run.foreign_names import FOREIGN_NAMES
from luthier.run.foreign_values import FOREIGN_VALUES

COMMAND = "python scripts/docs/write.py"

# The names that ordinary files of each tool use, in the order in which such files have them.
TOOLS = {
    "LLaMA-Factory": """
        model_name_or_path trust_remote_code stage do_train finetuning_type lora_rank lora_alpha lora_dropout
        lora_target freeze_trainable_layers quantization_bit dataset dataset_dir eval_dataset val_size template
        cutoff_len max_samples packing neat_packing train_on_prompt mask_history overwrite_cache
        preprocessing_num_workers dataloader_num_workers output_dir logging_steps save_steps plot_loss
        overwrite_output_dir save_only_model report_to per_device_train_batch_size gradient_accumulation_steps
        learning_rate num_train_epochs lr_scheduler_type warmup_ratio bf16 flash_attn use_unsloth
        enable_liger_kernel disable_gradient_checkpointing deepspeed ddp_timeout resume_from_checkpoint
        adapter_name_or_path eval_strategy eval_steps per_device_eval_batch_size seed
        """,
    "Axolotl": """
        base_model model_type tokenizer_type adapter lora_r lora_alpha lora_dropout lora_target_modules
        lora_target_linear lora_model_dir unfrozen_parameters load_in_4bit load_in_8bit datasets test_datasets
        val_set_size dataset_prepared_path chat_template train_on_inputs roles_to_train sequence_len
        excess_length_strategy sample_packing pad_to_sequence_len group_by_length micro_batch_size
        gradient_accumulation_steps num_epochs max_steps optimizer lr_scheduler learning_rate warmup_steps
        warmup_ratio weight_decay max_grad_norm bf16 tf32 flash_attention sdp_attention gradient_checkpointing
        gradient_checkpointing_kwargs output_dir saves_per_epoch save_steps evals_per_epoch early_stopping_patience
        logging_steps wandb_project wandb_entity wandb_run_id special_tokens deepspeed fsdp fsdp_config
        resume_from_checkpoint auto_resume_from_checkpoints seed
        """,
    "TRL and transformers": """
        model_name_or_path model_revision trust_remote_code torch_dtype attn_implementation dataset_name
        dataset_text_field dataset_num_proc max_length packing padding_free assistant_only_loss completion_only_loss
        chat_template_path use_peft peft_config lora_r lora_alpha lora_dropout lora_target_modules use_rslora
        use_dora load_in_4bit load_in_8bit per_device_train_batch_size gradient_accumulation_steps num_train_epochs
        max_steps learning_rate lr_scheduler_type warmup_ratio warmup_steps weight_decay max_grad_norm optim bf16
        gradient_checkpointing gradient_checkpointing_kwargs use_liger_kernel output_dir run_name logging_steps
        report_to save_strategy save_steps save_total_limit eval_strategy eval_steps load_best_model_at_end
        resume_from_checkpoint push_to_hub seed data_seed
        """,
    "torchtune": """
        _component_ model tokenizer checkpointer lora_attn_modules apply_lora_to_mlp apply_lora_to_output lora_rank
        lora_alpha lora_dropout dataset max_seq_len packed train_on_input batch_size gradient_accumulation_steps
        epochs max_steps_per_epoch optimizer lr weight_decay lr_scheduler num_warmup_steps loss dtype compile
        enable_activation_checkpointing clip_grad_norm output_dir metric_logger log_every_n_steps
        resume_from_checkpoint seed shuffle device
        """,
}
# Names that are spelled as ours and mean something else there.
_OTHER_MEANING = {
    (
        "Axolotl",
        "micro_batch_size",
    ): "there part of the batch, here memory only; `batch_size` is theirs × gradient_accumulation_steps × devices",
    ("torchtune", "batch_size"): "there per device and accumulation step, here per optimizer step: multiply",
    ("torchtune", "model"): "there a class, here a folder, a hub id or `starter`",
    ("torchtune", "optimizer"): "there a class, here a word: `optimizer: adamw`",
    ("Axolotl", "optimizer"): "here `adamw`",
}
LEAD = """\
[Recipe reference](recipe.md)

You need not learn this page: write the name you know, and `luthier check` answers with ours, the line, and how to
convert the value. Three things differ in meaning, not only in name.

1. **`batch_size` is the number of sequences of one optimizer step.** Others multiply a per-device batch, accumulation
   steps and devices. Here you say the product; how it is cut to fit into memory (`micro_batch_size`, `auto` by default)
   never changes the gradient.
2. **The method is one word, and its fields stand beside it**: `method: {kind: lora, rank: 16}` in place of `lora_r`,
   `lora_alpha` … on the top level.
3. **A row that is too long stops the run** unless you say `on_overlong: drop` or `truncate`. Nothing is cut in silence.

What can be derived is derived and printed, so an ordinary recipe is short:

```yaml
model: Qwen/Qwen3-0.6B
method: {kind: lora, rank: 16}
data: my.jsonl
epochs: 2
batch_size: 32
```
"""


def page() -> str:
    """Return the page."""
    lines = [
        f"<!-- Written by `{COMMAND}` from src/luthier/run/foreign_names.py. -->",
        "# Coming from another tool",
        "",
    ]
    lines += [LEAD.rstrip()]
    for tool in TOOLS:
        lines += ["", f"## {tool}", "| theirs | here | how |", "|---|---|---|", *(_row(tool, n) for n in names(tool))]
    listed = {name for tool in TOOLS for name in names(tool)}
    rest = [name for name in FOREIGN_NAMES if name not in listed]
    lines += ["", "## Other names that are understood", "| theirs | here | how |", "|---|---|---|"]
    lines += [_row("", name) for name in rest]
    lines += ["", "## Values", "| key | theirs | how |", "|---|---|---|"]
    lines += [f"| `{key}` | `{value}` | {_cell(how)} |" for (key, value), how in FOREIGN_VALUES.items()]
    return "\n".join(lines) + "\n"


def names(tool: str) -> list[str]:
    """Return the names of a tool."""
    return TOOLS[tool].split()


def _row(tool: str, name: str) -> str:
    if name in Recipe.model_fields:
        return f"| `{name}` | `{name}` | {_OTHER_MEANING.get((tool, name), 'the same')} |"
    foreign = FOREIGN_NAMES[name]
    how = foreign.how.replace("{value}", "VALUE")
    return f"| `{name}` | {f'`{foreign.ours}`' if foreign.ours else '–'} | {_cell(how)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
