"""What other tools call our keys: LLaMA-Factory, Axolotl, TRL and transformers, torchtune, LitGPT, ms-swift, PEFT.

Whoever brings a habit or a whole file along is told the word that counts here, and how to convert the value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Foreign:
    """A name of another tool: our key (empty where there is nothing to set), and how to convert.

    `how` may use {value}, what the user wrote.
    """

    ours: str
    how: str

    def remedy(self, value: object) -> str:
        """Return what to write instead."""
        how = self.how.replace("{value}", _shown(value))
        return f"here it is {self.ours}: {how}" if self.ours else how


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and value and all(isinstance(item, (str, int, float)) for item in value):
        value = f"[{', '.join(map(str, value))}]"
    return str(value) if isinstance(value, (str, int, float)) and len(str(value)) <= 60 else "…"


def _same(ours: str) -> Foreign:
    return Foreign(ours, f"write `{ours}: {{value}}`")


def _in_method(field: str, kind: str = "lora") -> Foreign:
    return Foreign(f"method.{field}", f"write `method: {{kind: {kind}, {field}: {{value}}}}`")


def _nothing(how: str) -> Foreign:
    return Foreign("", how)


_BATCH = Foreign(
    "batch_size",
    "the number of sequences per optimizer step, i.e. sequences per device × accumulation steps × devices; what fits "
    "into memory at once is micro_batch_size",
)
_DTYPE = Foreign("dtype", "write `dtype: bfloat16`, or leave it out and the machine's fastest safe format is taken")
_QUANTIZED = Foreign("method", "write `method: qlora`, or `method: {kind: qlora, bits: 8}`")
_ONE_DEVICE = _nothing("remove it: this version trains on one device")
_ATTENTION = _nothing("remove it: packed attention is exact on every machine and needs no setting")
_IN_OBJECTIVE = "write it in the long form of the objective: objective: {{kind: dpo, {key}: …}}"
_ROLLOUTS = "write it in the long form of the objective: objective: {{kind: grpo, {key}: …}}"
_VLLM = (
    "start vLLM's server beside the run and write its address in the long form of the objective: "
    "objective: {kind: grpo, vllm: http://127.0.0.1:8000/v1, …}"
)
_OBJECTIVES = "write `objective: sft` (answers), `objective: lm` (raw text), or dpo, kto, orpo, reward, ppo, grpo"
_CHECKPOINTING = Foreign(
    "gradient_checkpointing", "write `gradient_checkpointing: true`; every model uses the non-reentrant form"
)
_LENGTH = _same("max_length")
_TEMPLATE = Foreign(
    "model.chat_template",
    "leave it out to use the model's own template, or write `model: {path: …, chat_template: FILE.jinja}`",
)
_COLUMNS = Foreign("data.columns", "write `data: {path: …, columns: {prompt: …, answer: …}}`")
_COLUMN_NAMES = (
    "text_column",
    "prompt_column",
    "response_column",
    "field",
    "field_instruction",
    "field_output",
    "dataset_text_field",
)
_DATA_FORMAT = Foreign(
    "data.format", "leave it out, Luthier recognises it from the columns, or write `data: {path: …, format: …}`"
)
_TRACKER = Foreign("log_to", "write `log_to: [tensorboard]` (also wandb, mlflow)")
_REPLIES = Foreign("train_on", "assistant trains on the answers only, all on everything, last on the last answer")
_EVERY_STEP = _nothing("remove it: every step is logged")
_BETAS = Foreign("optimizer", "write `optimizer: {kind: adamw, beta1: 0.9, beta2: 0.999}`")
_WORKERS = _nothing("remove it: data are prepared before training, no workers are needed")
_SAVING = Foreign("save_steps", "write `save_steps: N`; without it a checkpoint is written after each epoch")
_EVALUATING = Foreign("eval_steps", "write `eval_steps: N`; without it the loss is measured after each epoch")
_ADAPTER = Foreign("method", "write `method: lora`, or another of `luthier methods`")
_RESUME = _nothing("remove it, and continue an interrupted run with `luthier resume RUN`")
_RUN = _same("run")
_NOISE = Foreign("regularizers", "write `regularizers: [{kind: neftune, alpha: {value}}]`")
_TEACHER = Foreign("objective.teacher", "write `objective: {kind: distill, teacher: {value}}`")
_EPOCHS = _same("epochs")
_RATE = _same("learning_rate")
_MODEL = _same("model")
_DATA = Foreign(
    "data", "write `data: FILE-OR-FOLDER`; several are a list, `data: [a.jsonl, {path: b.jsonl, weight: 2}]`"
)
_SHARES = Foreign("data", "write a weight beside each set: `data: [{path: a.jsonl, weight: 0.7}, …]`")
_WHEN_OVER = _nothing("remove it: an epoch has as many sequences as all sets together; a small set begins again")
_HELD_OUT = Foreign(
    "eval_fraction", "write the share of the rows, e.g. `eval_fraction: 0.1`; or name rows with eval_data"
)

FOREIGN_NAMES: dict[str, Foreign] = {
    # model
    "model_name_or_path": _MODEL,
    "model_name": _MODEL,
    "base_model": _MODEL,
    "base_model_name_or_path": _MODEL,
    "pretrained_model_name_or_path": _MODEL,
    "pretrained_model": _MODEL,
    "model_id": _MODEL,
    "model_path": _MODEL,
    "checkpoint_dir": _MODEL,
    "checkpointer": Foreign("model", "write `model: FOLDER`; the run's own checkpoints need no setting"),
    "model_type": _nothing("remove it: the architecture is read from config.json"),
    "tokenizer_type": _nothing("remove it: the tokenizer is read from the model's folder"),
    "tokenizer": _nothing("remove it: the tokenizer is read from the model's folder"),
    "tokenizer_name_or_path": _nothing("remove it: the tokenizer is read from the model's folder"),
    "model_revision": Foreign("model.revision", "write `model: {path: …, revision: {value}}`"),
    "revision_of_model": Foreign("model.revision", "write `model: {path: …, revision: {value}}`"),
    "trust_remote_code": Foreign("model.trust_remote_code", "write `model: {path: …, trust_remote_code: true}`"),
    "template": _TEMPLATE,
    "chat_template": _TEMPLATE,
    "chat_template_path": _TEMPLATE,
    "prompt_style": _TEMPLATE,
    "prompt_template": _TEMPLATE,
    "train_from_scratch": Foreign("model.from_scratch", "write `model: {path: …, from_scratch: true}`"),
    "reinit_weights": Foreign("model.from_scratch", "write `model: {path: …, from_scratch: true}`"),
    # method
    "finetuning_type": _ADAPTER,
    "tuner_type": _ADAPTER,
    "train_type": _ADAPTER,
    "sft_type": _ADAPTER,
    "adapter": _ADAPTER,
    "peft_type": _ADAPTER,
    "use_peft": _ADAPTER,
    "peft_config": _ADAPTER,
    "lora": Foreign("method", "write `method: lora`, or `method: {kind: lora, rank: 16}`"),
    "r": _in_method("rank"),
    "lora_r": _in_method("rank"),
    "lora_rank": _in_method("rank"),
    "target_r": _in_method("rank", "adalora"),
    "target_rank": _in_method("rank", "adalora"),
    "init_r": _in_method("initial_rank", "adalora"),
    "lora_alpha": _in_method("alpha"),
    "lora_dropout": _in_method("dropout"),
    "lora_target": _in_method("targets"),
    "lora_targets": _in_method("targets"),
    "lora_target_modules": _in_method("targets"),
    "target_modules": _in_method("targets"),
    "lora_attn_modules": _in_method("targets"),
    "lora_target_linear": Foreign("method.targets", "write `method: {kind: lora, targets: all-linear}`"),
    "apply_lora_to_mlp": _in_method("targets"),
    "apply_lora_to_output": _in_method("targets"),
    "lora_query": _in_method("targets"),
    "lora_key": _in_method("targets"),
    "lora_value": _in_method("targets"),
    "lora_projection": _in_method("targets"),
    "lora_mlp": _in_method("targets"),
    "lora_head": _in_method("targets"),
    "use_rslora": _in_method("rslora"),
    "use_dora": _in_method("dora"),
    "pissa_init": Foreign("method.init", "write `method: {kind: lora, init: pissa}`"),
    "init_lora_weights": _in_method("init"),
    "peft_init_lora_weights": _in_method("init"),
    "modules_to_save": _in_method("modules_to_save"),
    "lora_modules_to_save": _in_method("modules_to_save"),
    "additional_target": _in_method("modules_to_save"),
    "exclude_modules": _in_method("exclude"),
    "trainable_token_indices": _in_method("new_tokens"),
    "lora_target_parameters": _in_method("target_parameters"),
    "loraplus_lr_ratio": _in_method("ratio", "lora_plus"),
    "lorap_lr_ratio": _in_method("ratio", "lora_plus"),
    "loraplus_lr_embedding": _in_method("embedding_ratio", "lora_plus"),
    "num_virtual_tokens": _in_method("tokens", "prompt"),
    "prompt_tuning_init_text": _in_method("init_text", "prompt"),
    "encoder_hidden_size": _in_method("encoder_size", "p_tuning"),
    "prefix_projection": _in_method("projection", "prefix"),
    "num_labels": Foreign("objective", "write `objective: classify`; the classes are found in the rows"),
    "lora_bias": Foreign("method", "biases are trained with `method: bitfit`"),
    "freeze_trainable_layers": _in_method("last", "layers"),
    "freeze_trainable_modules": _in_method("patterns", "layers"),
    "unfrozen_parameters": _in_method("patterns", "layers"),
    "num_layers_to_train": _in_method("last", "layers"),
    "lora_model_dir": _RESUME,
    "adapter_name_or_path": _RESUME,
    "load_in_4bit": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "quantization_bit": _QUANTIZED,
    "quantization_config": _QUANTIZED,
    "quantize": _QUANTIZED,
    "quant_bits": _QUANTIZED,
    "bnb_4bit_quant_type": _QUANTIZED,
    "bnb_4bit_compute_dtype": _QUANTIZED,
    # objective
    "stage": Foreign("objective", _OBJECTIVES),
    "rlhf_type": Foreign("objective", _OBJECTIVES),
    "task": Foreign("objective", _OBJECTIVES),
    "do_train": _nothing("remove it: `luthier train` trains, `luthier eval` measures"),
    "do_eval": _nothing("remove it: rows are measured whenever eval_data, eval_fraction or evaluate is given"),
    "loss": Foreign("objective", "write `objective: sft` or `objective: lm`"),
    "loss_type": Foreign("objective.loss", _IN_OBJECTIVE.format(key="loss")),
    "pref_loss": Foreign("objective.loss", _IN_OBJECTIVE.format(key="loss")),
    "rl": Foreign("objective", _OBJECTIVES),
    "pref_beta": Foreign("objective.beta", _IN_OBJECTIVE.format(key="beta")),
    "rl_beta": Foreign("objective.beta", _IN_OBJECTIVE.format(key="beta")),
    "beta": Foreign("objective.beta", _IN_OBJECTIVE.format(key="beta")),
    "label_smoothing": Foreign("objective.label_smoothing", _IN_OBJECTIVE.format(key="label_smoothing")),
    "simpo_gamma": Foreign("objective.gamma", "write `objective: {kind: simpo, gamma: …}`"),
    "orpo_alpha": Foreign("objective.beta", "write `objective: {kind: orpo, beta: …}`"),
    "kto_desirable_weight": Foreign(
        "objective.desirable_weight", "write `objective: {kind: kto, desirable_weight: …}`"
    ),
    "kto_chosen_weight": Foreign("objective.desirable_weight", "write `objective: {kind: kto, desirable_weight: …}`"),
    "kto_undesirable_weight": Foreign(
        "objective.undesirable_weight", "write `objective: {kind: kto, undesirable_weight: …}`"
    ),
    "kto_rejected_weight": Foreign(
        "objective.undesirable_weight", "write `objective: {kind: kto, undesirable_weight: …}`"
    ),
    "rpo_alpha": Foreign("objective.sft_weight", "write `objective: {kind: dpo, sft_weight: …}`"),
    "pref_ftx": Foreign("objective.sft_weight", "write `objective: {kind: dpo, sft_weight: …}`"),
    "num_generations": Foreign("objective.num_generations", _ROLLOUTS.format(key="num_generations")),
    "num_iterations": Foreign("objective.iterations", _ROLLOUTS.format(key="iterations")),
    "num_ppo_epochs": Foreign("objective.iterations", "write `objective: {kind: ppo, iterations: …}`"),
    "num_mini_batches": Foreign("objective.minibatches", "write `objective: {kind: ppo, minibatches: …}`"),
    "max_completion_length": Foreign("objective.max_new_tokens", _ROLLOUTS.format(key="max_new_tokens")),
    "response_length": Foreign("objective.max_new_tokens", _ROLLOUTS.format(key="max_new_tokens")),
    "use_vllm": Foreign("objective.vllm", _VLLM),
    "vllm_mode": Foreign("objective.vllm", _VLLM),
    "vllm_server_base_url": Foreign("objective.vllm", _ROLLOUTS.format(key="vllm")),
    "vllm_server_host": Foreign("objective.vllm", _VLLM),
    "vllm_server_port": Foreign("objective.vllm", _VLLM),
    "lam": Foreign("objective.gae_lambda", "write `objective: {kind: ppo, gae_lambda: …}`"),
    "reward_funcs": Foreign("objective.reward", _ROLLOUTS.format(key="reward")),
    "reward_model": Foreign("objective.reward", "write `objective: {kind: ppo, reward: {kind: model, path: …}}`"),
    "scale_rewards": Foreign("objective.scale_rewards", _ROLLOUTS.format(key="scale_rewards")),
    "epsilon_high": Foreign("objective.epsilon_high", _ROLLOUTS.format(key="epsilon_high")),
    "mask_truncated_completions": Foreign("objective.mask_truncated", _ROLLOUTS.format(key="mask_truncated")),
    "kl_coef": Foreign("objective.beta", "write `objective: {kind: ppo, beta: …}`"),
    "cliprange": Foreign("objective.epsilon", "write `objective: {kind: ppo, epsilon: …}`"),
    "cliprange_value": Foreign("objective.epsilon_value", "write `objective: {kind: ppo, epsilon_value: …}`"),
    "vf_coef": Foreign("objective.value_weight", "write `objective: {kind: ppo, value_weight: …}`"),
    "missing_eos_penalty": Foreign(
        "objective.missing_end_penalty", "write `objective: {kind: ppo, missing_end_penalty: …}`"
    ),
    "ref_model": _nothing("remove it: the reference is the model that training starts from"),
    "precompute_ref_log_probs": _nothing("remove it: the reference's log-probabilities are always computed once"),
    "train_on_prompt": _REPLIES,
    "train_on_inputs": _REPLIES,
    "train_on_input": _REPLIES,
    "mask_prompt": _REPLIES,
    "mask_history": _REPLIES,
    "roles_to_train": _REPLIES,
    "assistant_only_loss": _REPLIES,
    "completion_only_loss": _REPLIES,
    # data
    "dataset": _DATA,
    "datasets": _DATA,
    "dataset_name": _DATA,
    "dataset_path": _DATA,
    "data_path": _DATA,
    "data_files": _DATA,
    "train_file": _DATA,
    "train_data": _DATA,
    "train_dataset": _DATA,
    "interleave_probs": _SHARES,
    "interleave_prob": _SHARES,
    "dataset_mixer": _SHARES,
    "probabilities": _SHARES,
    "mix_strategy": _WHEN_OVER,
    "stopping_strategy": _WHEN_OVER,
    "curriculum_sampling": Foreign("curriculum", "write `curriculum: length`; without it rows come in a random order"),
    "curriculum_learning": Foreign("curriculum", "write `curriculum: length`, or the long form with start, over, pace"),
    "dataset_dir": Foreign("data", "write the file's path in `data`"),
    "dataset_format": _DATA_FORMAT,
    "data_format": _DATA_FORMAT,
    "dataset_type": _DATA_FORMAT,
    "formatting": _DATA_FORMAT,
    "eval_dataset": _same("eval_data"),
    "val_dataset": _same("eval_data"),
    "validation_file": _same("eval_data"),
    "valid_data": _same("eval_data"),
    "test_datasets": Foreign("eval_data", "write `eval_data: FILE-OR-FOLDER`"),
    "val_size": _HELD_OUT,
    "val_set_size": _HELD_OUT,
    "val_split_fraction": _HELD_OUT,
    "split_dataset_ratio": _HELD_OUT,
    "test_size": _HELD_OUT,
    "validation_split": _HELD_OUT,
    "max_samples": Foreign("data.limit", "write `data: {path: …, limit: {value}}`"),
    "num_samples": Foreign("data.limit", "write `data: {path: …, limit: {value}}`"),
    "max_train_samples": Foreign("data.limit", "write `data: {path: …, limit: {value}}`"),
    "cutoff_len": _LENGTH,
    "sequence_len": _LENGTH,
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "model_max_length": _LENGTH,
    "block_size": _LENGTH,
    "max_prompt_length": Foreign("max_length", "one length for the whole sequence"),
    "seq_length": _LENGTH,
    "truncation": Foreign("on_overlong", "write `on_overlong: truncate`, drop, or error"),
    "truncation_strategy": Foreign("on_overlong", "write `on_overlong: truncate`, drop, or error"),
    "excess_length_strategy": Foreign("on_overlong", "write `on_overlong: truncate`, drop, or error"),
    "sample_packing": Foreign(
        "packing", "write `packing: true`, which is the default; packed rows never see each other"
    ),
    "neat_packing": Foreign("packing", "write `packing: true`, which is the default; packed rows never see each other"),
    "packed": _same("packing"),
    "padding_free": Foreign("packing", "write `packing: true`, which is the default"),
    "pad_to_sequence_len": _nothing("remove it: sequences are packed without padding"),
    "group_by_length": _nothing("remove it: sequences are packed without padding, so their order can stay random"),
    "preprocessing_num_workers": _WORKERS,
    "dataset_num_proc": _WORKERS,
    "dataloader_num_workers": _WORKERS,
    "num_workers": _WORKERS,
    "overwrite_cache": _nothing("remove it: nothing stale is ever read"),
    "dataset_prepared_path": _nothing("remove it: nothing stale is ever read"),
    "streaming": _nothing("remove it: files are read as they are"),
    "shuffle": Foreign("seed", "rows are shuffled by the seed in every epoch"),
    # how fast, how long
    "num_train_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "n_epochs": _EPOCHS,
    "epoch": _EPOCHS,
    "total_epochs": _EPOCHS,
    "max_train_steps": _same("max_steps"),
    "max_steps_per_epoch": _same("max_steps"),
    "train_steps": _same("max_steps"),
    "total_steps": _same("max_steps"),
    "iters": _same("max_steps"),
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "global_batch_size": _same("batch_size"),
    "train_batch_size": _BATCH,
    "accumulate_grad_batches": _BATCH,
    "per_device_eval_batch_size": _nothing("remove it: measuring takes what fits into memory"),
    "eval_batch_size": _nothing("remove it: measuring takes what fits into memory"),
    "auto_find_batch_size": Foreign("micro_batch_size", "write `micro_batch_size: auto`, which is the default"),
    "lr": _RATE,
    "max_lr": _RATE,
    "min_lr": Foreign(
        "schedule.min_ratio", "the last rate as a share of the peak: `schedule: {kind: cosine, min_ratio: 0.1}`"
    ),
    "min_lr_rate": Foreign("schedule.min_ratio", "write `schedule: {kind: cosine, min_ratio: {value}}`"),
    "cosine_min_lr_ratio": Foreign("schedule.min_ratio", "write `schedule: {kind: cosine, min_ratio: {value}}`"),
    "lr_scheduler_type": _same("schedule"),
    "lr_scheduler": _same("schedule"),
    "lr_schedule": _same("schedule"),
    "lr_scheduler_kwargs": Foreign("schedule", "write `schedule: {kind: cosine, min_ratio: 0.1}`"),
    "num_warmup_steps": _same("warmup_steps"),
    "lr_warmup_steps": _same("warmup_steps"),
    "lr_warmup_fraction": _same("warmup_ratio"),
    "warmup": Foreign("warmup_ratio", "write `warmup_ratio: 0.03`, or warmup_steps with a number of steps"),
    "optim": Foreign("optimizer", "write `optimizer: adamw`"),
    "optim_args": _BETAS,
    "betas": _BETAS,
    "adam_beta1": _BETAS,
    "adam_beta2": _BETAS,
    "adam_epsilon": Foreign("optimizer.eps", "write `optimizer: {kind: adamw, eps: {value}}`"),
    "gradient_clipping": _same("max_grad_norm"),
    "gradient_clip_val": _same("max_grad_norm"),
    "max_norm": _same("max_grad_norm"),
    "clip_grad_norm": _same("max_grad_norm"),
    "grad_clip": _same("max_grad_norm"),
    # where a step runs
    "bf16": _DTYPE,
    "fp16": Foreign("dtype", "leave it out: 16-bit floats overflow; bfloat16 is taken where the machine is fast at it"),
    "fp32": Foreign("dtype", "write `dtype: float32`"),
    "tf32": _nothing("remove it"),
    "precision": _DTYPE,
    "torch_dtype": _DTYPE,
    "pure_bf16": _DTYPE,
    "float16": _DTYPE,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "use_gradient_checkpointing": _CHECKPOINTING,
    "enable_activation_checkpointing": _CHECKPOINTING,
    "activation_checkpointing": _CHECKPOINTING,
    "disable_gradient_checkpointing": _CHECKPOINTING,
    "use_reentrant_gc": _CHECKPOINTING,
    "flash_attn": _ATTENTION,
    "flash_attention": _ATTENTION,
    "attn_implementation": _ATTENTION,
    "attn_impl": _ATTENTION,
    "sdp_attention": _ATTENTION,
    "xformers_attention": _ATTENTION,
    "use_unsloth": _nothing("remove it: the fast paths are on wherever they are exact"),
    "use_liger_kernel": _nothing("remove it: the fast paths are on wherever they are exact"),
    "enable_liger_kernel": _nothing("remove it: the fast paths are on wherever they are exact"),
    "torch_compile": _nothing("remove it"),
    "compile": _nothing("remove it"),
    "deepspeed": _ONE_DEVICE,
    "fsdp": _ONE_DEVICE,
    "fsdp_config": _ONE_DEVICE,
    "ddp_timeout": _ONE_DEVICE,
    "ddp_find_unused_parameters": _ONE_DEVICE,
    "local_rank": _ONE_DEVICE,
    "devices": _ONE_DEVICE,
    "num_nodes": _ONE_DEVICE,
    "placement": _ONE_DEVICE,
    "device": _nothing("remove it: a GPU is used where there is one; hide it with CUDA_VISIBLE_DEVICES="),
    "device_map": _nothing("remove it: a GPU is used where there is one"),
    "no_cuda": _nothing("remove it; hide the GPU with CUDA_VISIBLE_DEVICES="),
    "use_cpu": _nothing("remove it; hide the GPU with CUDA_VISIBLE_DEVICES="),
    # folders, logs, checkpoints
    "output_dir": _RUN,
    "out_dir": _RUN,
    "out": _RUN,
    "run_name": _RUN,
    "overwrite_output_dir": _nothing("remove it: a run folder is new or resumed, never mixed"),
    "logging_steps": _EVERY_STEP,
    "log_every_n_steps": _EVERY_STEP,
    "log_interval": _EVERY_STEP,
    "logging_dir": _TRACKER,
    "logging_first_step": _EVERY_STEP,
    "plot_loss": _nothing("remove it: the report shows the loss"),
    "report_to": _TRACKER,
    "logger_name": _TRACKER,
    "metric_logger": _TRACKER,
    "use_tensorboard": _TRACKER,
    "use_wandb": Foreign("log_to", "write `log_to: [wandb]`"),
    "wandb_project": Foreign("log_to", "write `log_to: [wandb]`, and name the project in the variable WANDB_PROJECT"),
    "wandb_entity": Foreign("log_to", "write `log_to: [wandb]`, and name the entity in the variable WANDB_ENTITY"),
    "wandb_run_id": Foreign("log_to", "write `log_to: [wandb]`"),
    "mlflow_tracking_uri": Foreign("log_to", "write `log_to: [mlflow]`, and set the variable MLFLOW_TRACKING_URI"),
    "save_strategy": _SAVING,
    "saves_per_epoch": _SAVING,
    "save_interval": _same("save_steps"),
    "save_every_n_steps": _same("save_steps"),
    "checkpoint_every": _same("save_steps"),
    "save_total_limit": _same("keep_checkpoints"),
    "neftune_noise_alpha": _NOISE,
    "neftune_alpha": _NOISE,
    "teacher_model_name_or_path": _TEACHER,
    "teacher_model": _TEACHER,
    "lmbda": Foreign("objective.on_policy", "write `objective: {kind: distill, teacher: …, on_policy: {value}}`"),
    "keep_last_n": _same("keep_checkpoints"),
    "save_only_model": _nothing(
        "remove it: the last states stay complete so that a run can be resumed (keep_checkpoints)"
    ),
    "save_safetensors": _nothing("remove it: weights are always written as safetensors"),
    "resume": _RESUME,
    "resume_from_checkpoint": _RESUME,
    "auto_resume_from_checkpoints": _RESUME,
    "push_to_hub": _nothing("remove it: upload the folder that `luthier export` writes"),
    "hub_model_id": _nothing("remove it: upload the folder that `luthier export` writes"),
    "eval_strategy": _EVALUATING,
    "evaluation_strategy": _EVALUATING,
    "evals_per_epoch": _EVALUATING,
    "eval_interval": _same("eval_steps"),
    "eval_every_n_steps": _same("eval_steps"),
    "load_best_model_at_end": Foreign("final_checkpoint", "write `final_checkpoint: best`"),
    "metric_for_best_model": Foreign("final_checkpoint", "write `final_checkpoint: best`; the held-out loss decides"),
    "early_stopping_patience": _same("early_stopping"),
    "random_seed": _same("seed"),
    "data_seed": _same("seed"),
    # whole sections
    "train": _nothing("write its keys at the top of the recipe, without a section"),
    "training": _nothing("write its keys at the top of the recipe, without a section"),
    "training_args": _nothing("write its keys at the top of the recipe, without a section"),
    "trainer": _nothing("write its keys at the top of the recipe, without a section"),
    "eval": Foreign("eval_data", "write eval_data, eval_steps and evaluate at the top of the recipe"),
    "_component_": Foreign("kind", "write the kind by its word, e.g. `kind: lora`; classes are not named in recipes"),
    "class_path": Foreign("kind", "write the kind by its word, e.g. `kind: lora`; classes are not named in recipes"),
    "init_args": _nothing("write the fields beside kind"),
    "type": Foreign("kind", "write `kind: {value}`"),
    "special_tokens": _nothing("remove it: the tokenizer's own special tokens are used"),
    "<<": _nothing("write the keys out: merge keys are not read"),
} | dict.fromkeys(_COLUMN_NAMES, _COLUMNS)
