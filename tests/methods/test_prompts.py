"""Soft prompts and prefixes: they act as the text whose embeddings, or keys and values, they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
)

from families import CONTEXT, NAMES, WINDOW, enlarge, examples, tokenizer
from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem, RunError
from luthier.export.folders import export_peft
from luthier.methods.base import Method, trainable
from luthier.methods.hybrid import Hybrid
from luthier.methods.lora import Lora
from luthier.methods.p_tuning import PTuning
from luthier.methods.p_tuning_v2 import PTuningV2
from luthier.methods.prefix import Prefix
from luthier.methods.prompt import Prompt
from luthier.models.causal import CausalModel
from luthier.models.load import load_model
from luthier.models.virtual_tokens import virtual_tokens
from luthier.objectives.sft import Sft
from luthier.train.generate import Sampling, generate, stop_tokens
from training import engine

Loaded = Callable[[str], CausalModel]

NO_PREFIX = ("gpt-oss", "qwen2-moe")
WITH_PREFIX = [n for n in NAMES if n not in NO_PREFIX]
TEXT = [7, 23, 41]  # shorter than the window, as what stands before the first token that a cache forgets
TOKENS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(3))
KINDS: list[Method] = [
    Prompt(tokens=4),
    PTuning(tokens=3, encoder="lstm", encoder_size=8),
    Prefix(tokens=4, projection=True, projection_size=8),
    PTuningV2(tokens=3),
]


@pytest.fixture
def loaded(family_folder: Callable[[str], Path]) -> Loaded:
    return lambda name: load_model(str(family_folder(name)))


_SMALL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def refusals(method: Method, **config: object) -> list[Problem]:
    return method.problems(StageFacts(method=method, objective=Sft(), model_config=config))


def behind(module: PreTrainedModel, text: list[int], tokens: Tensor) -> Tensor:
    """Logits of the plain model at `tokens`, which stand behind a text."""
    before = torch.tensor([text]).expand(len(tokens), -1)
    return module(input_ids=torch.cat([before, tokens], 1), use_cache=False).logits[:, len(text) :]


def put(module: PreTrainedModel, rows: Tensor) -> None:
    [parameter] = trainable(module).values()
    with torch.no_grad():
        parameter.copy_(rows)


# ---------------------------------------------------------------------- what they compute


@pytest.mark.parametrize("name", NAMES)
def test_a_soft_prompt_made_of_a_texts_embeddings_acts_as_that_text(name: str, loaded: Loaded) -> None:
    module = loaded(name).module.eval()
    with torch.no_grad():
        expected = behind(module, TEXT, TOKENS)
        Prompt(tokens=len(TEXT), init="text", init_tokens=tuple(TEXT)).prepare(module)
        torch.testing.assert_close(module(input_ids=TOKENS, use_cache=False).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_a_prefix_made_of_a_texts_keys_and_values_acts_as_that_text(name: str, loaded: Loaded) -> None:
    module = loaded(name).module.eval()
    with torch.no_grad():
        expected = behind(module, TEXT, TOKENS)
        cache = module(input_ids=torch.tensor([TEXT]), use_cache=True).past_key_values
        Prefix(tokens=len(TEXT)).prepare(module)
        states = [t[0] for layer in cache.layers for t in (layer.keys, layer.values)]
        put(module, torch.stack(states).permute(2, 0, 1, 3).flatten(1))
        torch.testing.assert_close(module(input_ids=TOKENS, use_cache=False).logits, expected, rtol=0, atol=1e-5)
        # The same one token at a time, where the cache of a sliding layer forgets.
        cache, found = None, []
        for column in TOKENS.T:
            out = module(input_ids=column[:, None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
        torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", KINDS, ids=lambda m: m.kind)
@pytest.mark.parametrize("name", NAMES)
def test_packed_padded_and_checkpointed_losses_and_gradients_equal_those_of_single_sequences(
    name: str, method: Method, loaded: Loaded
) -> None:
    if name in NO_PREFIX and isinstance(method, Prefix):
        pytest.skip("refused, as another test says")
    model = loaded(name)
    torch.manual_seed(2)
    method.prepare(model.module)
    model.module.eval()
    rows = examples([9, 2, 3 * WINDOW, 5], seed=1)

    def measured(packs: bool, groups: Sequence[list]) -> tuple[Tensor, dict[str, Tensor]]:
        model.packs = packs
        model.module.zero_grad()
        loss = torch.stack([model.nll_sum(model.collate(group)) for group in groups]).sum()
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in trainable(model.module).items() if p.grad is not None}

    could_pack = model.packs
    loss, gradients = measured(False, [[row] for row in rows])
    model.module.gradient_checkpointing_enable({"use_reentrant": False})
    for is_checkpointed in (False, True):
        model.module.train(is_checkpointed)  # checkpointing acts in training; these families have no dropout
        if is_checkpointed and name == "bloom" and isinstance(method, Prefix):
            with pytest.raises(ModelError, match="gradient checkpointing"):
                measured(False, [rows])
            continue
        for packs in {False, could_pack}:
            found, theirs = measured(packs, [rows])
            torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-4)
            assert theirs.keys() == gradients.keys() == trainable(model.module).keys()
            for key, gradient in gradients.items():
                torch.testing.assert_close(theirs[key], gradient, rtol=1e-3, atol=2e-4, msg=key)


@pytest.mark.parametrize("method", KINDS, ids=lambda m: m.kind)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_equal_token_by_token_argmax_and_do_not_depend_on_the_batch(
    name: str, method: Method, loaded: Loaded
) -> None:
    if name in NO_PREFIX and isinstance(method, Prefix):
        pytest.skip("refused, as another test says")
    model = loaded(name)
    torch.manual_seed(2)
    method.prepare(model.module)
    model.module.eval()
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, 60, n).tolist() for n in (7, 1, 2 * WINDOW + 3, 22)]
    stops = stop_tokens(model)
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 8 and not (len(tokens) > len(prompt) and tokens[-1] in stops):
            with torch.no_grad():
                logits = model.module(input_ids=torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
        answer = tokens[len(prompt) :]
        expected.append(answer[:-1] if answer[-1] in stops else answer)
    assert generate(model, prompts, Sampling(max_new_tokens=8)) == expected
    assert [generate(model, [p], Sampling(max_new_tokens=8))[0] for p in prompts] == expected


# ---------------------------------------------------------------------- encoders


Config = type[BertConfig] | type[RobertaConfig] | type[DistilBertConfig] | type[AlbertConfig] | type[ModernBertConfig]


def classifier(config: Config, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 48, "num_labels": 3, **changes}
    return enlarge(AutoModelForSequenceClassification.from_config(config(**sizes)))


def padded(tokens: Tensor, length: int) -> dict[str, Tensor]:
    """Two rows, of which the second is cut to `length` and padded."""
    mask = torch.ones_like(tokens)
    mask[1, length:] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}


def test_on_an_encoder_a_soft_prompt_of_a_texts_embeddings_is_that_text_before_the_first_token() -> None:
    module = classifier(BertConfig)
    given = padded(TOKENS, 9)
    with torch.no_grad():
        before = torch.tensor([TEXT]).expand(2, -1)
        ids, mask = torch.cat([before, given["input_ids"]], 1), torch.cat([before * 0 + 1, given["attention_mask"]], 1)
        hidden = module.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, len(TEXT) :]
        expected = module.classifier(module.base_model.pooler(hidden))
        Prompt(tokens=len(TEXT), init="text", init_tokens=tuple(TEXT)).prepare(module)
        torch.testing.assert_close(module(**given).logits, expected, rtol=0, atol=1e-5)
        out = module(**given, output_hidden_states=True)
        assert {h.shape[1] for h in out.hidden_states} == {TOKENS.shape[1]}


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig, DistilBertConfig, AlbertConfig])
@pytest.mark.parametrize("method", KINDS, ids=lambda m: m.kind)
def test_a_classifiers_answer_does_not_depend_on_padding_and_its_head_is_trained(
    method: Method, config: Config
) -> None:
    if config is AlbertConfig and isinstance(method, Prefix):
        pytest.skip("refused, as another test says")
    module = classifier(config)
    method.prepare(module)
    module.eval()
    given = padded(TOKENS.clone().clamp(min=4), 9)
    if config is RobertaConfig:
        given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, 1)
    logits = module(**given).logits
    alone = module(input_ids=given["input_ids"][1:, :9]).logits
    torch.testing.assert_close(logits[1:], alone, rtol=0, atol=1e-5)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    moved = {n for n, p in trainable(module).items() if p.grad is not None and p.grad.abs().max() > 0}
    assert any(n.startswith("classifier.") for n in moved)
    assert moved == trainable(module).keys()


@pytest.mark.parametrize("is_long", [False, True])
def test_peft_opens_a_classifier_with_deep_prompts_with_the_same_logits(is_long: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    module, plain = classifier(BertConfig), classifier(BertConfig)
    method = PTuningV2(tokens=5, projection=is_long)
    method.prepare(module)
    with torch.no_grad():
        for parameter in trainable(module).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    module.eval()
    method.save(module, tmp_path, base="somewhere")
    opened = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    given = padded(TOKENS, 9)
    torch.testing.assert_close(opened(**given).logits, module(**given).logits, rtol=0, atol=1e-5)
    again = classifier(BertConfig)
    method.prepare(again)
    method.load(again, tmp_path)
    assert torch.equal(again(**given).logits, module(**given).logits)


# ---------------------------------------------------------------------- what they start from


def test_a_text_to_start_from_is_found_by_the_tokenizer_and_repeated_to_the_length() -> None:
    probe = SimpleNamespace(tokenizer=tokenizer())
    method = Prompt(tokens=5, init="text", init_text="w9 w17")
    chosen = method.choose(probe)  # type: ignore[arg-type]
    assert chosen.init_tokens == (9, 17, 9, 17, 9)
    assert Prompt.model_validate_json(chosen.model_dump_json()) == chosen
    assert chosen.choose(probe) == chosen  # type: ignore[arg-type]
    assert Prompt(tokens=1, init="text", init_text="w9 w17").choose(probe).init_tokens == (9,)  # type: ignore[arg-type]
    assert Prompt().choose(probe) == Prompt()  # type: ignore[arg-type]


def test_from_the_vocabulary_it_starts_with_embeddings_that_the_model_has(loaded: Loaded) -> None:
    module = loaded("llama").module
    Prompt(tokens=7).prepare(module)
    [rows] = trainable(module).values()
    table = module.get_input_embeddings().weight
    assert all(bool((table == row).all(1).any()) for row in rows)


def test_a_text_without_tokens_is_refused(loaded: Loaded) -> None:
    with pytest.raises(ModelError, match="no tokens"):
        Prompt(init="text", init_text=" ").choose(SimpleNamespace(tokenizer=tokenizer()))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no tokens"):
        Prompt(init="text", init_text="w9").prepare(loaded("llama").module)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("method", "word"),
    [
        (Prompt(init="text"), "init_text"),
        (Prompt(init_text="Be kind."), "init: text"),
        (PTuning(encoder_layers=3), "lstm"),
        (PTuning(encoder_dropout=0.1), "lstm"),
        (PTuning(encoder="lstm", encoder_layers=1, encoder_dropout=0.1), "more layers"),
        (Prefix(projection_size=512), "projection: true"),
        (PTuningV2(projection_size=512), "projection: true"),
    ],
)
def test_an_option_without_effect_is_refused(method: Method, word: str) -> None:
    [problem] = refusals(method)
    assert word in problem.remedy


@pytest.mark.parametrize("method", [Prompt(tokens=96), PTuning(tokens=96), Prefix(tokens=96), PTuningV2(tokens=200)])
@pytest.mark.parametrize("key", ["n_positions", "max_position_embeddings"])
def test_more_virtual_tokens_than_the_context_holds_are_refused(method: Method, key: str, loaded: Loaded) -> None:
    [problem] = refusals(method, **{key: 96})
    assert "96" in problem.remedy
    with pytest.raises(ModelError, match="leave no room"):
        method.prepare(loaded("gpt2").module)


def test_checkpointing_is_refused_before_a_run_where_it_would_take_the_prefix_away() -> None:
    for method in (Prefix(), PTuningV2()):
        for family, number in (("bloom", 1), ("llama", 0)):
            facts = StageFacts(method, Sft(), {"model_type": family}, gradient_checkpointing=True)
            assert len(method.problems(facts)) == number
    assert refusals(Prefix(), model_type="bloom") == []


@pytest.mark.parametrize("name", NO_PREFIX)
def test_an_architecture_whose_attention_asks_for_no_prefix_is_refused(name: str, loaded: Loaded) -> None:
    with pytest.raises(ModelError, match="keys and values") as caught:
        Prefix(tokens=3).prepare(loaded(name).module)
    assert "soft prompt" in str(caught.value)


@pytest.mark.parametrize("config", [AlbertConfig, ModernBertConfig])
def test_an_encoder_that_shares_its_layers_or_looks_both_ways_through_a_window_is_refused(config: Config) -> None:
    with pytest.raises(ModelError, match="keys and values"):
        PTuningV2(tokens=3).prepare(classifier(config, **_SMALL_IDS))


def test_the_context_has_room_for_so_many_tokens_less_and_generation_stops_there(loaded: Loaded) -> None:
    for method in KINDS:
        model = loaded("gpt2")
        size = method.reserved_positions
        method.prepare(model.module)
        assert model.context_length == CONTEXT - size
        model.tokenizer.eos_token = None
        model.module.generation_config.eos_token_id = None
        prompts = [list(range(3, 43)) * 2, [5] * (CONTEXT - size)]
        [answer, none] = generate(model, prompts, Sampling(max_new_tokens=50))
        assert len(answer) == CONTEXT - size - 80
        assert none == []
        longest = model.collate(examples([CONTEXT - size], share=1.0))
        assert bool(model.nll_sum(longest).isfinite())


# ---------------------------------------------------------------------- saving


@pytest.mark.parametrize("method", KINDS, ids=lambda m: m.kind)
def test_the_folder_holds_what_peft_reads_and_a_network_only_beside_it(
    method: Method, loaded: Loaded, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    model = loaded("llama")
    running = engine(model, method)
    running.train_step(examples([9, 14]))
    method.save(model.module, tmp_path, base=model.path)
    virtual = virtual_tokens(model.module)
    assert virtual is not None
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert list(stored) == ["prompt_embeddings"]
    with torch.no_grad():
        torch.testing.assert_close(stored["prompt_embeddings"], virtual(), rtol=0, atol=1e-6)
    assert (tmp_path / "trained.safetensors").is_file() == (len(trainable(model.module)) > 1)


@pytest.mark.parametrize("method", [Prompt(tokens=4), Prefix(tokens=4, projection=True)], ids=lambda m: m.kind)
@pytest.mark.parametrize("name", ["llama", "bloom", "mistral", "gemma2", "gpt-neox"])
def test_an_export_opens_in_peft_with_the_runs_logits(
    name: str, method: Method, loaded: Loaded, tmp_path: Path
) -> None:
    model = loaded(name)
    plain = loaded(name).module.eval()(input_ids=TOKENS).logits
    method.prepare(model.module)
    (tmp_path / "checkpoint").mkdir()
    method.save(model.module, tmp_path / "checkpoint", base=model.path)
    model.module.eval()
    assert (model.module(input_ids=TOKENS).logits - plain).abs().max() > 1e-2
    assert export_peft(model, tmp_path / "checkpoint", tmp_path / "out").drift < 1e-5


def test_a_folder_of_another_length_or_without_its_network_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    module, longer = loaded("llama").module, loaded("llama").module
    Prompt(tokens=4).prepare(module)
    Prompt(tokens=4).save(module, tmp_path, base="somewhere")
    Prompt(tokens=5).prepare(longer)
    with pytest.raises(RunError, match="other shape"):
        Prompt(tokens=5).load(longer, tmp_path)
    written = loaded("llama").module
    PTuning(tokens=4).prepare(written)
    with pytest.raises(RunError, match=r"trained\.safetensors"):
        PTuning(tokens=4).load(written, tmp_path)


# ---------------------------------------------------------------------- beside other methods


def test_beside_lora_both_are_trained_and_the_prompts_network_gets_no_adapter(loaded: Loaded) -> None:
    for parts in ([PTuning(tokens=4), Lora(rank=2)], [Lora(rank=2), PTuning(tokens=4)]):
        model = loaded("llama")
        method = Hybrid(parts=tuple(parts))
        assert method.reserved_positions == 4
        running = engine(model, method)
        before = {n: p.detach().clone() for n, p in trainable(model.module).items()}
        assert any("lora_B" in n for n in before)
        assert not any("virtual_tokens" in n and "lora" in n for n in before)
        running.train_step(examples([9, 14, 5]))
        running.train_step(examples([9, 14, 5]))
        assert all(not torch.equal(p, before[n]) for n, p in trainable(model.module).items())


def test_two_prompts_at_once_are_refused(loaded: Loaded) -> None:
    with pytest.raises(ModelError, match="already"):
        Hybrid(parts=(Prompt(tokens=4), Prefix(tokens=4))).prepare(loaded("llama").module)


# ---------------------------------------------------------------------- published counts


def _meta(config: object, family: type = AutoModelForCausalLM) -> PreTrainedModel:
    with torch.device("meta"):
        return family.from_config(config)


BLOOMZ_560M = BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
LLAMA_7B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
GPT2_MEDIUM = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
ROBERTA_LARGE = RobertaConfig(
    vocab_size=50265,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    max_position_embeddings=514,
    type_vocab_size=1,
)


@pytest.mark.parametrize(
    ("method", "published"),
    [
        # PEFT's guide "Prompt-based methods": bloomz-560m, print_trainable_parameters of each method.
        (PTuning(tokens=20, encoder_size=128), 300_288),
        (Prefix(tokens=20), 983_040),
        (Prompt(tokens=8), 8_192),
    ],
)
def test_counts_are_those_of_pefts_guide(method: Method, published: int) -> None:
    module = _meta(BLOOMZ_560M)
    assert method.count(module) == published
    assert sum(p.numel() for p in module.parameters()) == 559_214_592


def test_p_tuning_counts_as_in_pefts_guide_on_classification_with_roberta_large() -> None:
    # "P-tuning for sequence classification": trainable params: 1,351,938 || all params: 355,662,082 with two classes.
    module = _meta(ROBERTA_LARGE, AutoModelForSequenceClassification)
    head = sum(p.numel() for n, p in module.named_parameters() if n.startswith("classifier."))
    count = PTuning(tokens=20, encoder_size=128).count(module)
    assert count + head == 1_351_938


@pytest.mark.parametrize(
    ("width", "tokens", "published"),
    [
        # Lester et al. 2021, arXiv:2104.08691: 20,480 for T5-XXL and 5 tokens (figure 2), and the appendix's table of
        # every size and length of T5 1.1.
        (512, 1, 512),
        (512, 20, 10_240),
        (512, 100, 51_200),
        (768, 20, 15_360),
        (768, 100, 76_800),
        (1024, 20, 20_480),
        (1024, 100, 102_400),
        (2048, 20, 40_960),
        (2048, 100, 204_800),
        (4096, 5, 20_480),
        (4096, 20, 81_920),
        (4096, 100, 409_600),
    ],
)
def test_a_soft_prompts_count_is_that_of_its_paper(width: int, tokens: int, published: int) -> None:
    config = T5Config(vocab_size=32128, d_model=width, d_kv=64, d_ff=1024, num_layers=1, num_heads=4)
    assert Prompt(tokens=tokens).count(_meta(config, AutoModelForSeq2SeqLM)) == published


def test_a_prefixs_share_is_that_of_the_papers() -> None:
    # LLaMA-7B with 30 virtual tokens: 0.11 % (Hu et al. 2023, LLM-Adapters, and Liu et al. 2024, DoRA, table 1).
    llama = _meta(LLAMA_7B)
    count = Prefix(tokens=30).count(llama)
    assert count == 7_864_320
    assert 0.0011 <= count / sum(p.numel() for p in llama.parameters()) < 0.0012
    # Li & Liang 2021: 0.1 % on GPT-2 medium, whose prefix for tables has 10 tokens.
    medium = _meta(GPT2_MEDIUM)
    assert round(100 * Prefix(tokens=10).count(medium) / sum(p.numel() for p in medium.parameters()), 1) == 0.1


def test_deep_prompts_count_two_vectors_for_every_layer_and_token() -> None:
    # Liu et al. 2022, P-Tuning v2: 0.1 % to 3 % per task on BERT-large (335M) with prompts of 5 to 200 tokens.
    config = BertConfig(
        vocab_size=30522, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    module = _meta(config, AutoModelForSequenceClassification)
    whole = sum(p.numel() for p in module.parameters())
    assert PTuningV2(tokens=20).count(module) == 20 * 24 * 2 * 1024
    assert 0.0005 < PTuningV2(tokens=5).count(module) / whole < PTuningV2(tokens=200).count(module) / whole < 0.03


def test_grouped_heads_make_a_prefix_as_narrow_as_the_keys() -> None:
    config = AutoConfig.for_model(
        "qwen3", hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128
    )
    module = _meta(config)
    assert Prefix(tokens=10).count(module) == 10 * 28 * 2 * 8 * 128
