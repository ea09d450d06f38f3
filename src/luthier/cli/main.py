"""The program `luthier`: one verb per file, imported when it is called, so that `--help` waits for nothing.

Exit codes: 0 done, 1 the run failed, 2 the user can mend it, 130 interrupted. With `--json` standard output holds
exactly one JSON document, the result or `{"error": {"kind": …, "problems": […]}}`; all else goes to standard error.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn, cast, get_args, get_type_hints

import typer
from typer.core import TyperArgument
from typer.models import ParameterInfo

from luthier import __version__
from luthier.core.errors import LuthierError

# Set before torch is imported, each only where the user has not. What is not listed here is left as it is.
_ENVIRONMENT = {
    # OpenMP's threads spin while they wait; on a machine shared with anything else this made training 3.5 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # transformers prints advice that concerns its own trainer.
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # Progress bars of downloads would break the lines of the log.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1" if not sys.stderr.isatty() else "0",
    # Nothing about a run leaves the machine.
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

app = typer.Typer(
    name="luthier",
    help="Fine-tune language models: one engine, one recipe file, every mainstream method.",
    epilog="Start with: luthier new recipe.yaml, then luthier train recipe.yaml",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    suggest_commands=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe: a YAML or JSON file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as method.rank=8 or max_steps=20."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, e.g. runs/recipe.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="A run, a model folder, a hub id, or starter.")]
TrainOn = Literal["assistant", "all", "last"]
ExportForm = Literal["hf", "peft"]
Prefer = Literal["low", "middle", "high"]
Combination = Literal["linear", "cat", "ties", "dare_linear", "dare_ties"]
Quality = Literal["any", "good", "best"]
Lang = Annotated[
    Literal["en", "zh"] | None, typer.Option("--lang", help="English or Chinese. Without it: the terminal's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def _luthier(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, json: AsJson = False) -> None:
    """Train what a recipe says.

    Example: luthier train recipe.yaml method=lora learning_rate=1e-4 max_steps=20
    """
    from luthier.cli import train as verb

    verb.run(recipe, overrides or [], json)


@app.command()
def resume(run: RunPath, json: AsJson = False) -> None:
    """Go on with an interrupted run from its last checkpoint, as if nothing had happened.

    Example: luthier resume runs/recipe
    """
    from luthier.cli import resume as verb

    verb.run(run, json)


@app.command()
def check(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe; not needed for --json-schema.")
    ] = None,
    overrides: Overrides = None,
    json: AsJson = False,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print the schema of recipes, for editors and forms.")
    ] = False,
) -> None:
    """Find everything wrong with a recipe, its model and its data, in a second and without training.

    Example: luthier check recipe.yaml
    """
    from luthier.cli import check as verb

    verb.run(recipe, overrides or [], json, json_schema)


@app.command()
def plan(
    target: Annotated[
        str | None, typer.Argument(metavar="RECIPE|MODEL", help="A recipe, or a model: a folder, a hub id, or starter.")
    ] = None,
    overrides: Overrides = None,
    params: Annotated[bool, typer.Option("--params", help="Count the parameters that would be trained.")] = False,
    what_fits: Annotated[
        bool, typer.Option("--what-fits", help="Tell which method fits which card, and what must be offloaded.")
    ] = False,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Plan for cards: A100-80GB, 8xH100-80GB, 24GB, several with commas.")
    ] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, help="How many of them.")] = 1,
    placement: Annotated[
        str | None, typer.Option("--placement", help="ddp, zero1, zero2, zero3 or fsdp2: how they share the work.")
    ] = None,
    offload: Annotated[str, typer.Option("--offload", help="What lies on the host: none, optimizer or all.")] = "none",
    mixed: Annotated[
        bool, typer.Option("--mixed", help="16-bit weights and gradients beside a float32 copy, as DeepSpeed has them.")
    ] = False,
    calibrate: Annotated[
        list[Path] | None, typer.Option("--calibrate", help="Fit the overhead of this machine to finished runs.")
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Forget what was calibrated.")] = False,
    json: AsJson = False,
) -> None:
    """Tell what a recipe would need and take: memory by part, steps, operations, hours, energy. No weights are read.

    Example: luthier plan recipe.yaml --gpu A100-80GB, or luthier plan Qwen/Qwen3-0.6B --what-fits
    """
    from luthier.cli import plan as verb

    if calibrate or forget:
        more = [Path(p) for p in (target, *(overrides or [])) if p]
        verb.calibrate([*(calibrate or []), *more], json, forget)
        return
    hardware = verb.Hardware(gpu, devices, placement, offload, mixed)
    verb.run(verb.require_target(target), overrides or [], params, json, hardware, what_fits)


@app.command()
def advise(
    model: Annotated[str | None, typer.Option("--model", help="A folder, a hub id, or starter; sizes only.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="A file, a folder or starter:NAME; several by several --data.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="How many rows there will be.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="A card's memory: 24GB, or 2x24GB for two.")] = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="The same for several cards: 4x80GB.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train without a GPU.")] = False,
    memory: Annotated[str | None, typer.Option("--memory", help="The memory of a machine without a GPU: 16GB.")] = None,
    purpose: Annotated[
        list[str] | None,
        typer.Option(
            "--purpose",
            help="style, domain, task, classification, alignment, tasks, domains, languages, verifiable, prototype, "
            "production; several with commas.",
        ),
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--not-private", help="The data must stay with those who hold them.")
    ] = None,
    on_device: Annotated[bool, typer.Option("--on-device", help="Train on the users' devices.")] = False,
    deadline: Annotated[str | None, typer.Option("--deadline", help="The time there is: 90min, 6h, 2d.")] = None,
    variants: Annotated[int, typer.Option("--variants", min=1, help="Fine-tuned models to serve from one base.")] = 1,
    quality: Annotated[
        Quality | None,
        typer.Option("--quality", help="any: a first impression will do. good. best: whatever it costs."),
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="How answers are checked: exact_match, or FILE.py:NAME.")
    ] = None,
    general: Annotated[
        str | None, typer.Option("--general", help="Rows of what must not be forgotten: a file, or starter:NAME.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write the recipes into.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over recipes that are there.")] = False,
    lang: Lang = None,
    json: AsJson = False,
) -> None:
    """Advise which method suits a model, data, a machine and a purpose, with reasons, and write the recipes.

    Example: luthier advise --model starter --data starter:quickstart --purpose style --out advised
    """
    from luthier.cli import advise as verb

    asked = verb.Asked(
        model,
        tuple(data or ()),
        rows,
        tuple(purpose or ()),
        private,
        on_device,
        deadline,
        variants,
        quality,
        reward,
        general,
    )
    verb.run(asked, verb.Hardware(gpu, gpus, cpu, memory), out, force, lang, json)


@app.command()
def new(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")] = Path("recipe.yaml"),
    method: Annotated[str, typer.Option("--method", "-m", help="What is trained; see luthier methods.")] = "lora",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
) -> None:
    """Write a recipe in which every key is explained.

    Example: luthier new my.yaml --method full
    """
    from luthier.cli import new as verb

    verb.run(path, method, force)


@app.command("eval")
def evaluate(
    target: Target,
    data: Annotated[Path | None, typer.Option("--data", help="The rows to measure on.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Measure only so many rows.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=2, help="Cut longer rows to this.")] = None,
    train_on: Annotated[
        TrainOn | None, typer.Option("--train-on", help="Measure the answers, everything, or the last answer.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", help="A .jinja file in place of the model's own template.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="A task: its YAML file, a public file, KIND:FILE, lm_eval:NAME. Several times."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure a run or a model: the loss on any rows, or tasks.

    Example: luthier eval runs/recipe --data held-out.jsonl
    """
    if task:
        from luthier.cli import eval_tasks

        eval_tasks.run(target, task, json, limit, eval_tasks.Idle(data, max_length, train_on, chat_template))
        return
    from luthier.cli import eval as verb

    verb.run(target, data, json, limit, max_length, train_on, chat_template)


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    to: Annotated[
        ExportForm, typer.Option("--to", help="hf: a whole Hugging Face folder. peft: an adapter that PEFT opens.")
    ] = "hf",
    ignore_gate: Annotated[
        bool, typer.Option("--ignore-gate", help="Go on although a run did not pass the gate of its recipe.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Write what a run has learnt in a form that other programs open, open it again, and compare.

    Example: luthier export runs/recipe my-model --to hf
    """
    from luthier.cli import export as verb

    verb.run(run, to, out, json, ignore_gate)


@app.command()
def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="RUN|ADAPTER…", help="Runs of a LoRA method, or folders of adapters.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    weights: Annotated[
        str | None, typer.Option("--weights", help="One number for each, such as 0.7,0.3. Without it: equal shares.")
    ] = None,
    method: Annotated[
        Combination, typer.Option("--method", help="linear (or cat): the exact weighted sum. ties, dare: see the docs.")
    ] = "linear",
    density: Annotated[
        float, typer.Option("--density", min=0, max=1, help="The share of numbers that ties and dare keep.")
    ] = 0.5,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Combine whole updates and cut the result to this rank.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides which numbers dare drops.")] = 0,
    ignore_gate: Annotated[
        bool, typer.Option("--ignore-gate", help="Go on although a run did not pass the gate of its recipe.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Make one adapter of several on the same base, and measure how far it is from each.

    Example: luthier merge runs/poems runs/stories --weights 0.7,0.3 --out both
    """
    from luthier.cli import merge as verb

    verb.run(adapters, out, weights, method, density, rank, seed, json, ignore_gate)


@app.command()
def chat(
    target: Target,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told first.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest word.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 256,
) -> None:
    """Talk to what a run has trained, or to any model.

    Example: luthier chat runs/recipe
    """
    from luthier.cli import chat as verb

    verb.run(target, system, temperature, max_new_tokens)


@app.command()
def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="FILE|RUN…", help="A file of experiments (and KEY=VALUE for all of them), or runs."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of the runs and the table. Without it: runs/ and the name.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Runs at once. Without it: as many as there are cores for.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Train variants or a grid of one recipe at an equal budget, and lay them, or any runs, side by side.

    Example: luthier compare examples/all-methods.yaml, or luthier compare runs/a runs/b
    """
    from luthier.cli import compare as verb

    verb.run(words, out, json, workers)


@app.command()
def tune(
    file: RecipePath,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="How many trials. Without it: 20.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of the search. Without it: runs/ and the recipe's name.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Trials at once.")] = 1,
    lr_range: Annotated[
        bool, typer.Option("--lr-range", help="Only let the learning rate rise until the loss breaks away.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Search for the best values of a recipe's keys; what to choose from stands under tune. It goes on where it was.

    Example: luthier tune recipe.yaml tune.space.learning_rate=1e-4..1e-2 --trials 30
    """
    from luthier.cli import tune as verb

    verb.run(file, overrides or [], trials, out, workers, lr_range, json)


@app.command()
def show(run: RunPath, json: AsJson = False) -> None:
    """Show how a run went: losses, measurements, samples.

    Example: luthier show runs/recipe
    """
    from luthier.cli import show as verb

    verb.run(run, json)


@app.command()
def methods(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="Explain this one.")] = None,
    lang: Lang = None,
    json: AsJson = False,
) -> None:
    """List the methods, or explain one: what it trains, when to use it, its fields.

    Example: luthier methods lora
    """
    from luthier.cli import methods as verb

    verb.run(kind, json, lang)


@app.command()
def judge(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA…", help="Rows with a prompt and answers; or one run, or two, for their samples."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The file of preferences or scores to write (JSONL).")],
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="A chat endpoint of OpenAI's form: http://127.0.0.1:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The judge's name at the endpoint.")] = None,
    rubric: Annotated[Path | None, typer.Option("--rubric", help="A text that says what makes an answer good.")] = None,
    constitution: Annotated[
        Path | None, typer.Option("--constitution", help="Principles: answers are criticised and rewritten by them.")
    ] = None,
    local: Annotated[
        str | None, typer.Option("--judge", help="A local judge: a reward model or any model, by run or folder.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", help="A reward as judge: file.py:function, or {kind: …} as in a recipe.")
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="Score every answer instead of comparing them.")] = False,
    scale: Annotated[str, typer.Option("--scale", help="The worst and the best score of a judge.")] = "1,10",
    margin: Annotated[
        float, typer.Option("--margin", min=0, help="Local judges: answers no further apart than this are a tie.")
    ] = 0.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Critiques and revisions of each answer.")] = 1,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The column of the prompt.")] = None,
    answers: Annotated[str | None, typer.Option("--answers", help="The columns of the answers, such as a,b.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Judge only the first rows.")] = None,
    sample: Annotated[
        str | None, typer.Option("--sample", help="A run or a model that writes the answers; DATA holds prompts.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers that --sample writes to a prompt.")] = 2,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="How freely --sample writes; 0 takes the likeliest word.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest of its answers.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Decides what --sample draws.")] = 0,
    rate: Annotated[float | None, typer.Option("--rate", help="The most requests in a minute.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=256, help="Requests at the same time.")] = 4,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until a request is sent again.")] = 60.0,
    retries: Annotated[int, typer.Option("--retries", min=0, help="How often a request is sent again.")] = 6,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The judge's longest answer.")] = 1024,
    price_in: Annotated[float, typer.Option("--price-in", min=0, help="Price of a million tokens asked.")] = 0.0,
    price_out: Annotated[float, typer.Option("--price-out", min=0, help="Price of a million tokens answered.")] = 0.0,
    api_key_env: Annotated[
        str, typer.Option("--api-key-env", help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    json: AsJson = False,
) -> None:
    """Let a judge compare or score answers, or rewrite them by a constitution. It goes on where it was stopped.

    Example: luthier judge pairs.jsonl --endpoint http://127.0.0.1:8000/v1 --model judge --rubric rubric.md --out
    preferences.jsonl
    """
    from luthier.cli import judge as verb
    from luthier.rewards.judging.endpoint import Address

    address = None
    if endpoint is not None:
        address = Address(endpoint, model or "", api_key_env, timeout, retries, rate, max_tokens=max_tokens)
    judges = verb.Judges(address, local, reward, rubric, constitution)
    task = verb.Task(score, verb.scale_of(scale), margin, rounds, concurrency, max_tokens, (price_in, price_out))
    writer = None if sample is None else verb.Writer(sample, samples, temperature, max_new_tokens, seed)
    verb.run(verb.Rows(data, prompt, answers, limit, writer), judges, task, out, force, json)


@app.command()
def label(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="One or two runs, or models: whose answers are compared.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The file of preferences.")] = Path("preferences.jsonl"),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port here; 0 takes any.")] = 7870,
    data: Annotated[
        str | None, typer.Option("--data", help="Prompts to answer; without runs, rows with two answers each.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The most prompts.")] = 50,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="How freely answers are drawn.")] = 0.8,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides the answers.")] = 0,
    json: AsJson = False,
) -> None:
    """Compare answers on a page of this machine, blind and by keyboard; preference data come of it.

    Example: luthier label runs/a runs/b --out preferences.jsonl
    """
    from luthier.cli import label as verb

    verb.run(targets or [], out, port, data, verb.Sampled(limit, temperature, max_new_tokens, seed), json)


@app.command()
def doctor(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder, a pattern, or starter:NAME.")],
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="Evaluation data: look for rows of it that are trained on.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="Write a cleaned copy there, and what went and why.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the findings as a page.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help="The longest row, in tokens.")] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Which column is which: prompt=Frage,answer=2 (by name or place).")
    ] = None,
    words: Annotated[
        Path | None, typer.Option("--words", help="Your own list of abusive words, one a line, beside those that ship.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Look only at the first rows.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Also by this model's tokens, template, and what it finds unlikely.")
    ] = None,
    perplexity: Annotated[
        int, typer.Option("--perplexity", min=0, help="Rows that the model runs on at most, evenly spread; 0 for none.")
    ] = 2000,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", help="In place of the model's own: a name or a .jinja file.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Look for what is wrong with data: duplicates, leaks, broken text, personal data, answers that are none.

    Example: luthier doctor my.jsonl --eval held-out.jsonl --fix clean.jsonl
    """
    from luthier.cli import doctor as verb

    asked = None if model is None else verb.WithModel(model, perplexity, chat_template)
    verb.run(data, evaluation, fix, html, max_length, columns, words, limit, asked, json)


@app.command()
def select(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Questions with answers: a file, a folder, a pattern.")],
    best: Annotated[str, typer.Option("--best", help="How many rows to keep: a number, or a share such as 10%.")],
    out: Annotated[Path, typer.Option("--out", help="The file of the rows that are kept (JSONL).")],
    by: Annotated[
        str, typer.Option("--by", help="perplexity, ifd, diversity, joined by commas; or random, to compare with.")
    ] = "ifd,diversity",
    prefer: Annotated[
        Prefer, typer.Option("--prefer", help="Which perplexities are best: middle, low (easy) or high (hard).")
    ] = "middle",
    model: Annotated[
        str, typer.Option("--model", help="What scores the rows: a run, a folder, a hub id, or starter.")
    ] = "starter",
    seed: Annotated[int, typer.Option("--seed", help="Breaks ties, and decides a random choice.")] = 0,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Which column is which: prompt=Frage,answer=2 (by name or place).")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Choose only among the first rows.")] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=2, help="Score longer rows cut to this.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", help="In place of the model's own: a name or a .jinja file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    json: AsJson = False,
) -> None:
    """Keep the rows most worth learning from, by a model's scores of them and by what they cover together.

    Example: luthier select my.jsonl --best 1000 --model runs/short --out best.jsonl
    """
    from luthier.cli import select as verb

    wish = verb.Wish(best, by, prefer, seed)
    verb.run(data, wish, out, model, columns, limit, max_length, chat_template, force, json)


@app.command()
def env(json: AsJson = False) -> None:
    """Show the machine as Luthier sees it: processor, memory, GPU, libraries, what is missing.

    Example: luthier env
    """
    from luthier.cli import env as verb

    verb.run(json)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program and leave with its exit code."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # PEFT imports it wherever it is installed, and it then recommends kernels that Luthier does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    sys.exit(_run(list(sys.argv[1:] if argv is None else argv)))


def _verbs() -> dict[str, Callable[..., None]]:
    callbacks = [(verb.name, verb.callback) for verb in app.registered_commands]
    return {name or callback.__name__: callback for name, callback in callbacks if callback is not None}


def _command() -> Callable[..., object]:
    """Return the program, every argument with its help.

    Some versions of typer lose the help of arguments under click 8.5, whose arguments have a help of their own.
    """
    command = typer.main.get_group(app)
    for name, callback in _verbs().items():
        hints = get_type_hints(callback, include_extras=True)
        for parameter in command.commands[name].params:
            notes = [n for n in get_args(hints.get(parameter.name or "")) if isinstance(n, ParameterInfo)]
            if notes and isinstance(parameter, TyperArgument):
                parameter.help = notes[0].help
    return command


def _run(argv: list[str]) -> int:
    as_json = "--json" in argv
    try:
        # Outside its standalone mode typer returns the code of an Exit instead of leaving with it.
        code = _command()(argv or ["--help"], prog_name="luthier", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except LuthierError as error:
        from luthier.cli.messages import show_error

        show_error(error, as_json)
        return error.exit_code
    except typer.Exit as leave:
        return leave.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has left. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from luthier.cli.messages import show_error
        from luthier.cli.usage import UsageError, explain_usage

        if isinstance(error, UsageError):
            show_error(
                explain_usage(error.format_message(), cast("typer.Context | None", error.ctx), argv, list(_verbs())),
                as_json,
            )
            return 2
        sys.stderr.write(
            "luthier: this is a bug in Luthier, not in your recipe. Please report it with the lines below.\n"
        )
        raise
