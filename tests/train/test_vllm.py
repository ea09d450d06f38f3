"""Rollouts by a vLLM server: given the adapter as it is each time, read exactly, and the same training as our own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from families import write as write_family
from luthier.core.component import component_class
from luthier.core.errors import Failure, UserError
from luthier.data.records import Asked, PromptAnswer
from luthier.methods.lora import Lora
from luthier.models.causal import CausalModel
from luthier.models.load import load_model
from luthier.rewards.base import Scorer
from luthier.rewards.judging.wire import Clock, NoAnswer
from luthier.train.engine import Engine
from luthier.train.generate import Sampling
from luthier.train.rl import iterate
from luthier.train.rollout import Prompt, Writer, written_here
from luthier.train.vllm import VllmServer
from recipes import luthier, pairs, write_recipe, write_rows
from training import engine
from vllm_server import FAULTS, Served, VllmDouble, serving

Capture = pytest.CaptureFixture[str]
HASTE = Clock(time.monotonic, lambda seconds: None)
KINDS = {
    "grpo": {"num_generations": 3, "beta": 0.1, "iterations": 2, "mask_truncated": True},
    "rloo": {"num_generations": 3},
    "ppo": {"iterations": 2, "minibatches": 2},
}
LORA = Lora(rank=2)


class Evens(Scorer):
    """Likes even numbers."""

    def __call__(self, prompts: object, answers: Sequence[str], rows: object, asked: object = None) -> list[float]:
        return [float(np.mean([int(w[1:]) % 2 == 0 for w in a.split() if w[1:].isdigit()] or [0])) for a in answers]


def _prompts() -> list[Prompt]:
    draw = np.random.default_rng(0)
    made = []
    for index, length in enumerate((4, 6, 5)):
        record = PromptAnswer(f"prompt {index}", "", "", "", (), False, f"p.jsonl:{index}")
        made.append(Prompt(draw.integers(3, 60, length).astype(np.int32), Asked(record, {}, record.source)))
    return made


PROMPTS = _prompts()


@pytest.fixture(scope="module")
def served(family_folder: Callable[[str], Path]) -> Served:
    return Served(family_folder("llama"), LORA)


@pytest.fixture
def start(family_folder: Callable[[str], Path]) -> Callable[..., Engine]:
    def make(kind: str, **fields: object) -> Engine:
        model = load_model(str(family_folder("llama")))
        assert isinstance(model, CausalModel)
        values = {"kind": kind, "reward": "exact_match", "max_new_tokens": 24, **KINDS[kind], **fields}
        objective = component_class("objective", kind).model_validate(values)
        return engine(model, LORA, objective, eps=1e-3, keep_reference=True, total_steps=100)  # type: ignore[arg-type]

    return make


def _trained(running: Engine) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in running.method.state_dict(running.model.module).items()}


def _iterations(running: Engine, write: Writer, count: int = 3) -> list[dict[str, float]]:
    return [iterate(running, Evens(), PROMPTS, write) for _ in range(count)]


def _as_ours(ours: Engine, theirs: Engine) -> bool:
    mine, other = _trained(ours), _trained(theirs)
    return mine.keys() == other.keys() and all(torch.allclose(mine[n], other[n], atol=1e-4) for n in mine)


@pytest.mark.parametrize(("kind", "temperature"), [("grpo", 1.0), ("rloo", 0.7), ("ppo", 1.0)])
def test_training_with_a_server_that_writes_as_we_do_ends_where_our_own_does(
    kind: str, temperature: float, start: Callable[..., Engine], served: Served, tmp_path: Path
) -> None:
    ours, theirs = start(kind, temperature=temperature), start(kind, temperature=temperature)
    own = _iterations(ours, written_here)
    with serving(VllmDouble(served)) as server:
        rows = _iterations(theirs, VllmServer(server.url, tmp_path / "adapters", HASTE))
    assert [row.pop("gap") for row in rows] == pytest.approx([0.0] * 3, abs=1e-4)
    assert all(row == pytest.approx(other, rel=1e-3, abs=1e-4) for row, other in zip(rows, own))
    assert _as_ours(ours, theirs)
    assert not _as_ours(ours, start(kind)), "something was trained"


def test_each_set_of_answers_is_written_by_the_adapter_as_it_then_is(
    start: Callable[..., Engine], served: Served, tmp_path: Path
) -> None:
    running = start("rloo")
    with serving(VllmDouble(served)) as server:
        write = VllmServer(server.url, tmp_path / "adapters", HASTE)
        _iterations(running, write)
        asked = [path for path, _ in server.events]
        assert asked == [
            *["load_lora_adapter", *["completions"] * 3],
            *["load_lora_adapter", "unload_lora_adapter", *["completions"] * 3] * 2,
        ]
        loaded = [body["lora_name"] for body in server.bodies("load_lora_adapter")]
        assert [body["lora_name"] for body in server.bodies("unload_lora_adapter")] == loaded[:2]
        assert len(set(loaded)) == len(set(server.weights)) == 3, "the weights differ each time"
        assert [body["model"] for body in server.bodies("completions")] == [n for n in loaded for _ in range(3)]
        assert list(server.adapters) == loaded[2:]
        iterate_again = len(server.events)
        write(running, [[5, 6]], 2, Sampling(4, 1.0, seed=1))
        write(running, [[5, 7]], 2, Sampling(4, 1.0, seed=1))
        assert [path for path, _ in server.events[iterate_again:]].count("load_lora_adapter") == 1, "sent once"
        write.close()
        assert server.adapters == {}
    assert not (tmp_path / "adapters").exists()


def test_what_is_asked_is_all_that_decides_the_answers(
    start: Callable[..., Engine], served: Served, tmp_path: Path
) -> None:
    running = start("grpo", temperature=0.8, top_p=0.9)
    with serving(VllmDouble(served)) as server:
        _iterations(running, VllmServer(server.url, tmp_path, HASTE), 1)
        bodies = sorted(server.bodies("completions"), key=lambda body: body["seed"])
    assert [body["prompt"] for body in bodies] == [prompt.tokens.tolist() for prompt in PROMPTS]
    fixed = {"n": 3, "max_tokens": 24, "temperature": 0.8, "top_p": 0.9, "top_k": -1, "min_p": 0.0}
    fixed |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "return_token_ids": True}
    assert all(body.items() >= fixed.items() and body["stop_token_ids"] == [2] for body in bodies)
    seeds = {body["seed"] + answer for body in bodies for answer in range(3)}
    assert len(seeds) == 9, "no two answers share their draws"
    assert max(seeds) < 2**63


def test_a_server_that_stumbles_changes_nothing(start: Callable[..., Engine], served: Served, tmp_path: Path) -> None:
    smooth, rough = start("grpo"), start("grpo")
    with serving(VllmDouble(served)) as server:
        _iterations(smooth, VllmServer(server.url, tmp_path / "a", HASTE), 2)
    plan = ["cut", "", *FAULTS, "", "hang-up", "500", "cut", "500", "429"]
    with serving(VllmDouble(served, plan)) as server:
        _iterations(rough, VllmServer(server.url, tmp_path / "b", HASTE), 2)
        assert not server.plan
        assert len(server.adapters) == 1
    assert _as_ours(smooth, rough)


def test_a_server_that_stays_silent_ends_the_run_with_its_address(
    start: Callable[..., Engine], served: Served, tmp_path: Path
) -> None:
    with serving(VllmDouble(served, ["", *["500"] * 100])) as server:
        write = VllmServer(server.url, tmp_path / "adapters", HASTE)
        with pytest.raises(NoAnswer, match=r"completions did not answer in 7 tries: status 500: busy"):
            _iterations(start("grpo"), write, 1)
        server.plan.clear()
        write.close()
        assert server.adapters == {}


def test_a_server_that_was_started_anew_gets_the_adapter_again(
    start: Callable[..., Engine], served: Served, tmp_path: Path
) -> None:
    running = start("rloo")
    with serving(VllmDouble(served)) as server:
        write = VllmServer(server.url, tmp_path, HASTE)
        first = write(running, [[5, 6]], 2, Sampling(6, 1.0, seed=1))
        server.adapters.clear()
        again = write(running, [[5, 6]], 2, Sampling(6, 1.0, seed=1))
    assert [a.tokens.tolist() for a in again[0]] == [a.tokens.tolist() for a in first[0]]


def test_adapters_that_a_killed_run_left_behind_are_taken_out(
    start: Callable[..., Engine], served: Served, tmp_path: Path
) -> None:
    with serving(VllmDouble(served)) as server:
        VllmServer(server.url, tmp_path, HASTE)(start("rloo"), [[5]], 2, Sampling(4, 1.0))
        assert len(server.adapters) == 1
        server.adapters["of-somebody-else"] = tmp_path
        VllmServer(server.url, tmp_path, HASTE)
        assert list(server.adapters) == ["of-somebody-else"]


def test_tokens_are_read_from_older_servers_too(start: Callable[..., Engine], served: Served, tmp_path: Path) -> None:
    running = start("rloo")
    with serving(VllmDouble(served)) as server:
        write = VllmServer(server.url, tmp_path, HASTE)
        new = write(running, [[5, 6, 7]], 12, Sampling(30, 1.0, seed=3))
        server.tells_ids = False
        old = write(running, [[5, 6, 7]], 12, Sampling(30, 1.0, seed=3))
    assert [a.tokens.tolist() for a in old[0]] == [a.tokens.tolist() for a in new[0]]
    assert {a.is_truncated for a in new[0]} == {True, False}
    assert all((a.tokens[-1] == 2) != a.is_truncated for a in new[0])


def test_a_prompt_that_fills_the_servers_context_has_no_answer(
    start: Callable[..., Engine], served: Served, tmp_path: Path
) -> None:
    running = start("rloo")
    with serving(VllmDouble(served)) as server:
        write = VllmServer(server.url, tmp_path, HASTE)
        assert write.context == 64
        [[full, _], [nearly, _]] = write(running, [[5] * 64, [5] * 62], 2, Sampling(8, 1.0))
    assert (len(full.tokens), full.is_truncated) == (0, True)
    assert len(nearly.tokens) <= 2


def test_another_base_is_noticed_by_what_it_says_of_its_own_words(start: Callable[..., Engine], tmp_path: Path) -> None:
    write_family("llama", tmp_path / "other")
    other = Served(tmp_path / "other", LORA)
    with torch.no_grad():
        for parameter in other.model.module.parameters():
            parameter.mul_(1.3)
    with (
        serving(VllmDouble(other)) as server,
        pytest.raises(Failure, match="another model than the one in training"),
    ):
        _iterations(start("grpo"), VllmServer(server.url, tmp_path / "a", HASTE), 1)


def test_a_server_without_adapters_is_told_how_to_be_started(
    start: Callable[..., Engine], served: Served, tmp_path: Path
) -> None:
    with serving(VllmDouble(served)) as server:
        server.takes_adapters = False
        with pytest.raises(UserError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
            _iterations(start("grpo"), VllmServer(server.url, tmp_path, HASTE), 1)


# ---------------------------------------------------------------------- from the user's side

FUNCTION = "def score(prompts, answers, rows):\n    return [len(set(a.split())) / 8 for a in answers]\n"


def _recipe(folder: Path, model: Path, url: str, method: object, **keys: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "many.py").write_text(FUNCTION, encoding="utf-8")
    write_rows(folder / "held.jsonl", pairs(2, seed=1))
    objective = {"kind": "grpo", "reward": "many.py:score", "num_generations": 4, "max_new_tokens": 12, "vllm": url}
    settings = {
        "objective": objective,
        "method": method,
        "eval_data": "held.jsonl",
        "max_steps": 2,
        "batch_size": 2,
        "schedule": "constant",
    }
    return write_recipe(folder, model, **{**settings, **keys})


def test_a_recipe_with_a_server_trains_and_leaves_it_as_it_was(
    family_folder: Callable[[str], Path], served: Served, tmp_path: Path, capsys: Capture
) -> None:
    with serving(VllmDouble(served)) as server:
        recipe = _recipe(tmp_path, family_folder("llama"), server.url, {"kind": "lora", "rank": 2})
        done = luthier(capsys, "train", recipe, "--json")
        assert done.code == 0, done.err
        assert f"by the vLLM server at {server.url}, which serves served-base" in done.err
        assert server.adapters == {}
        assert len(set(server.weights)) == 3, "before, after one step, after two"
    [file] = (tmp_path / "run").glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all(row["gap"] < 1e-3 for row in rows)
    assert "held-out reward" in json.loads(done.out)["eval"]["after"]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("full", "no LoRA adapter"),
        ("ia3", "no LoRA adapter"),
        ({"kind": "lora", "dora": True}, "DoRA"),
        ({"kind": "lora", "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"kind": "lora", "rank_pattern": {"q": 4}}, "one scale"),
    ],
)
def test_what_a_server_cannot_be_given_is_refused_with_the_reason(
    method: object, reason: str, family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    said = luthier(capsys, "check", _recipe(tmp_path, family_folder("llama"), "http://127.0.0.1:1/v1", method))
    assert said.code == 2
    assert reason in said.err
    assert "use method: lora, or remove vllm" in said.err


def test_no_server_and_no_address_are_told_before_the_weights_are_loaded(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.train import vllm

    recipe = _recipe(tmp_path, family_folder("llama"), "127.0.0.1:8000", "lora")
    said = luthier(capsys, "check", recipe)
    assert said.code == 2
    assert "no address of an endpoint" in said.err
    monkeypatch.setattr(vllm, "PATIENCE", vllm.Patience("NONE", 1.0, 0, place=vllm.PLACE))
    said = luthier(capsys, "train", recipe, "objective.vllm=http://127.0.0.1:9/v1")
    assert said.code == 1
    assert "http://127.0.0.1:9/v1/models did not answer" in said.err


def test_a_stacked_stage_is_refused_because_the_server_lacks_what_lies_under_it(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    recipe = _recipe(tmp_path, family_folder("llama"), "http://127.0.0.1:1/v1", "lora")
    whole = json.loads(recipe.read_text(encoding="utf-8"))
    own = {key: whole.pop(key) for key in ("objective", "data", "eval_data")}
    write_rows(tmp_path / "sft.jsonl", pairs(4))
    whole["stages"] = [{"objective": "sft", "data": "sft.jsonl"}, {**own, "adapter": "stack"}]
    recipe.write_text(json.dumps(whole), encoding="utf-8")
    said = luthier(capsys, "check", recipe)
    assert said.code == 2
    assert "adapter: merge" in said.err
