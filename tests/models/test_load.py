"""Loading: every way in which a model folder can be wrong is one ModelError with its remedy, before training begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from families import examples, tokenizer, write
from luthier.core.batch import collate
from luthier.core.errors import ModelError
from luthier.methods.lora import Lora
from luthier.models.files import local_folder
from luthier.models.load import choose_dtype, fingerprint, load_model
from training import engine


@pytest.fixture
def folder(family_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A good model folder to spoil."""
    return Path(shutil.copytree(family_folder("llama"), tmp_path / "models" / "my-llama"))


def _refused(name: str | Path, **options: object) -> str:
    """Load what cannot be loaded; every problem must say where it is and what to do."""
    with pytest.raises(ModelError) as caught:
        load_model(str(name), **options)  # type: ignore[arg-type]
    assert all(p.where and p.remedy for p in caught.value.problems)
    return str(caught.value)


def _edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ---------------------------------------------------------------------- what is wrong


def test_a_folder_that_does_not_exist_is_answered_with_the_models_beside_it(folder: Path) -> None:
    message = _refused(folder.parent / "my-lama")
    assert "no such model folder" in message
    assert "my-llama" in message


def test_a_folder_that_does_not_exist_and_has_no_neighbours_is_answered_with_what_to_give(tmp_path: Path) -> None:
    assert "hub id, or starter" in _refused(tmp_path / "nothing" / "here")


def test_a_hub_id_that_cannot_be_reached_says_to_check_the_name_or_give_a_folder() -> None:
    assert "give a folder" in _refused("nobody/no-such-model")


def test_a_folder_without_config_says_what_to_give(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in _refused(folder)
    assert "no config.json" in _refused(folder, from_scratch=True)


def test_a_config_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json cannot be read" in _refused(folder)


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    _edit_config(folder, model_type="lama", architectures=["LamaForCausalLM"])
    assert "lama" in _refused(folder)


def test_a_model_that_brings_its_own_code_is_not_run_unless_asked(folder: Path) -> None:
    _edit_config(folder, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})
    (folder / "own.py").write_text("raise SystemExit('this code must never run')")
    assert "trust_remote_code=true" in _refused(folder)


def test_a_folder_without_weights_says_so(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "from_scratch=true" in _refused(folder)


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = _refused(folder)
    assert "pytorch_model.bin is a pickle" in message
    assert "convert it to safetensors" in message


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cut off" in _refused(folder)


def test_a_missing_shard_is_refused(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="30KB")
    (folder / "model.safetensors").unlink()
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_model(str(folder))
    shards[1].unlink()
    assert shards[1].name in _refused(folder)


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        ({"hidden_size": 64}, "model.embed_tokens.weight"),
        ({"vocab_size": 100}, "model.embed_tokens.weight"),
        ({"intermediate_size": 40}, "model.layers.0.mlp.down_proj.weight"),
        ({"num_attention_heads": 8}, "model.layers.0.self_attn.q_proj.weight"),
    ],
    ids=str,
)
def test_a_config_of_other_sizes_than_the_weights_names_the_tensors(
    change: dict[str, int], tensor: str, folder: Path
) -> None:
    _edit_config(folder, **change)
    message = _refused(folder)
    assert "another shape than config.json says" in message
    assert tensor in message


def test_a_config_of_more_layers_than_the_file_names_what_is_missing(folder: Path) -> None:
    _edit_config(folder, num_hidden_layers=3)
    message = _refused(folder)
    assert "Weights are missing" in message
    assert "model.layers.2." in message


def test_a_config_of_fewer_layers_than_the_file_names_what_is_left_over(folder: Path) -> None:
    _edit_config(folder, num_hidden_layers=1)
    message = _refused(folder)
    assert "does not have" in message
    assert "model.layers.1." in message


def test_a_single_missing_tensor_is_found(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.v_proj.weight"))
    assert "model.layers.1.self_attn.v_proj.weight" in _refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_single_number_that_is_none_is_found_and_its_tensor_named(value: float, folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    _edit_weights(folder, lambda tensors: tensors[name].view(-1)[13:14].fill_(value))
    assert name in _refused(folder)


def test_a_folder_without_tokenizer_says_which_files_to_copy(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    assert "tokenizer.json" in _refused(folder)


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer cannot be loaded" in _refused(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_numbers(folder: Path) -> None:
    tokenizer(70).save_pretrained(folder)
    message = _refused(folder)
    assert "70 tokens" in message
    assert "64 rows" in message


@pytest.mark.parametrize("has_tokenizer", [False, True])
def test_an_adapter_folder_is_recognised(has_tokenizer: bool, folder: Path, tmp_path: Path) -> None:
    running = engine(load_model(str(folder)), Lora(rank=2))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    running.method.save(running.model.module, adapter, base=str(folder))
    if has_tokenizer:
        tokenizer().save_pretrained(adapter)
    message = _refused(adapter)
    assert "this is an adapter" in message
    assert "luthier export" in message


def test_several_problems_are_told_at_once(folder: Path) -> None:
    _edit_weights(folder, lambda t: t.update({"of.another.model": t.pop("model.norm.weight")}))
    message = _refused(folder)
    assert "model.norm.weight" in message
    assert "of.another.model" in message


# ---------------------------------------------------------------------- what is right


def test_a_good_folder_gives_a_float32_model_with_its_tokenizer(folder: Path) -> None:
    model = load_model(str(folder))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert model.autocast is None
    assert model.tokenizer.eos_token_id == 2
    assert model.pad_id == 0
    assert model.context_length == 96
    assert model.path == str(folder)
    assert model.notes == []


def test_names_are_found_beside_the_recipe(folder: Path) -> None:
    assert load_model("my-llama", base=folder.parent).path == str(folder)
    assert local_folder("my-llama", folder.parent) == folder
    assert local_folder("org/name") is None


def test_sixteen_bits_are_for_computing_and_storing_only_where_asked(folder: Path) -> None:
    full = load_model(str(folder), dtype="bfloat16")
    assert {p.dtype for p in full.module.parameters()} == {torch.float32}
    assert full.autocast == torch.bfloat16
    frozen = load_model(str(folder), dtype="bfloat16", frozen_in_16_bits=True)
    assert {p.dtype for p in frozen.module.parameters()} == {torch.bfloat16}
    Lora(rank=2).apply(frozen.module)
    assert {p.dtype for p in frozen.module.parameters() if p.requires_grad} == {torch.float32}


def test_a_file_in_sixteen_bits_is_trained_in_float32(folder: Path) -> None:
    _edit_weights(folder, lambda t: t.update({n: v.bfloat16() for n, v in t.items()}))
    _edit_config(folder, dtype="bfloat16")
    assert {p.dtype for p in load_model(str(folder)).module.parameters()} == {torch.float32}


def test_auto_means_float32_on_a_cpu() -> None:
    assert choose_dtype("auto", "cpu") is torch.float32
    assert choose_dtype("bfloat16", "cpu") is torch.bfloat16


def test_from_scratch_needs_no_weights_and_draws_them_from_the_seed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    prints = [load_model(str(folder), from_scratch=True, seed=s).fingerprint for s in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_a_fingerprint_changes_with_any_tensor(folder: Path) -> None:
    model = load_model(str(folder)).module
    seen = {fingerprint(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[0] += 1
        seen.add(fingerprint(model))
    assert len(seen) == len(list(model.parameters())) + 1
    assert load_model(str(folder)).fingerprint == load_model(str(folder)).fingerprint


def test_a_head_that_differs_from_the_embedding_it_is_said_to_be_tied_to_is_kept(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(family_folder("llama-tied"), tmp_path / "untied"))
    head = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    _edit_weights(folder, lambda t: t.update({"lm_head.weight": head}))
    model = load_model(str(folder))
    assert torch.equal(model.module.get_output_embeddings().weight, head)
    batch = collate(examples([9, 5]))
    running = engine(model, Lora(rank=2))
    running.train_step(examples([9, 5]))
    with torch.no_grad():
        trained = model.logps(batch)
    model.module.eval()
    running.method.merge(model.module).save_pretrained(tmp_path / "merged")
    model.tokenizer.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(tmp_path / "merged")).logps(batch), trained, rtol=0, atol=1e-5)


def test_loading_draws_no_bar_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = str(write("llama", tmp_path))
    capfd.readouterr()
    load_model(folder)
    assert "Loading weights" not in capfd.readouterr().err
