"""The program: what it imports, what it answers to wrong command lines, and its exit codes."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys

import pytest

from luthier.cli.main import app, main
from luthier.core.errors import Failure, Interrupted, NonFiniteError, Problem, RecipeError

VERBS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def call(*argv: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(argv))
    assert isinstance(left.value.code, int)
    return left.value.code


def program(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "luthier", *argv]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=120)


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["check", "--json-schema"], ["--version"]])
def test_what_needs_no_model_waits_for_no_heavy_library(argv: list[str]):
    code = (
        "import sys\nfrom luthier.cli.main import main\n"
        f"try:\n    main({argv!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert VERBS == [
        "train",
        "resume",
        "check",
        "plan",
        "advise",
        "new",
        "eval",
        "export",
        "merge",
        "chat",
        "compare",
        "tune",
        "show",
        "methods",
        "judge",
        "label",
        "doctor",
        "select",
        "env",
    ]
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_an_example_and_explains_its_arguments(verb: str, capsys: pytest.CaptureFixture[str]):
    assert call(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert f"luthier {verb}" in shown.partition("Example:")[2]
    explained = {
        "train": "YAML or JSON file",
        "resume": "folder of a run",
        "plan": "hub id",
        "eval": "hub id",
        "methods": "Explain this one",
    }
    assert explained.get(verb, "") in shown


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]):
    assert call() == 0
    assert "luthier train recipe.yaml" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    from luthier import __version__

    assert call("--version") == 0
    assert capsys.readouterr().out == f"luthier {__version__}\n"


WRONG = [
    (["trian", "x.yaml"], 'Did you mean "train"'),
    (["recipe.yaml"], "luthier train recipe.yaml"),
    (["train"], "RECIPE"),
    (["train", "x.yaml", "--learning-rate", "1e-4"], "learning_rate=1e-4"),
    (["train", "x.yaml", "--learning_rate=1e-4"], "learning_rate=1e-4"),
    (["train", "x.yaml", "--method.targets", "a b"], "'method.targets=a b'"),
    (["eval", "x", "--dat", "y"], 'Did you mean "--data"'),
    (["eval", "x", "--limit", "0"], "limit"),
    (["export", "x", "y", "--to", "gguf"], "'hf', 'peft'"),
    (["show", "a", "b"], "luthier show --help"),
    (["--vers"], 'Did you mean "--version"'),
    (["resume", "-q"], "luthier resume --help"),
    (["check"], "luthier check recipe.yaml"),
    (["train", "method=lora"], "recipe"),
]


@pytest.mark.parametrize(("argv", "remedy"), WRONG, ids=lambda part: " ".join(part) if isinstance(part, list) else "")
def test_a_wrong_command_line_is_told_what_to_type(argv: list[str], remedy: str, capsys: pytest.CaptureFixture[str]):
    assert call(*argv) == 2
    shown = capsys.readouterr()
    assert remedy in shown.err
    assert shown.out == ""


CALLS = [
    (["train", "a.yaml", "seed=1", "epochs=2", "--json"], "train"),
    (["resume", "runs/a"], "resume"),
    (["check", "a.yaml", "seed=1", "--json"], "check"),
    (["plan", "a.yaml", "seed=1", "--params", "--json"], "plan"),
    (["new", "a.yaml", "--method", "full", "--force"], "new"),
    (["eval", "runs/a", "--data", "x.jsonl", "--limit", "3", "--train-on", "all"], "eval"),
    (["export", "runs/a", "out", "--to", "peft"], "export"),
    (["merge", "runs/a", "runs/b", "--out", "c", "--weights", "0.7,0.3"], "merge"),
    (["chat", "runs/a", "--system", "x", "--temperature", "0"], "chat"),
    (["compare", "runs/a", "runs/b", "--json"], "compare"),
    (["show", "runs/a", "--json"], "show"),
    (["methods", "lora"], "methods"),
    (["env", "--json"], "env"),
]


@pytest.mark.parametrize(("argv", "verb"), CALLS, ids=lambda part: part if isinstance(part, str) else "")
def test_a_verb_is_called_with_what_was_typed(argv: list[str], verb: str, monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module(f"luthier.cli.{verb}")
    takes, given = inspect.signature(module.run), []
    monkeypatch.setattr(module, "run", lambda *values: given.append(takes.bind(*values).arguments))
    assert call(*argv) == 0
    [arguments] = given
    typed = [word for word in argv[1:] if not word.startswith("--") and "=" not in word]
    shown = [str(v) for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    assert all(word in shown or word.replace("0", "0.0") in shown for word in typed)
    assert ("--json" in argv) == (arguments.get("json") is True)
    if "overrides" in arguments:
        assert arguments["overrides"] == [word for word in argv if "=" in word]


ENDS = [
    (RecipeError(Problem("Wrong.", "r.yaml:3", "mend it")), 2, "error: r.yaml:3: Wrong.\n  → mend it\n"),
    (RecipeError(Problem("One."), Problem("Two.")), 2, "error: One.\nerror: Two.\n2 problems\n"),
    (RecipeError(Problem("Odd.", severity="warning"), Problem("Two.")), 2, "warning: Odd.\nerror: Two.\n"),
    (RecipeError(Problem("[bold]x[/] :smile: \x1b[31m")), 2, "error: [bold]x[/] :smile: \\x1b[31m\n"),
    (NonFiniteError("The loss of step 3 is nan."), 1, "error: The loss of step 3 is nan.\n"),
    (Interrupted("Stopped after step 3."), 130, "Stopped after step 3.\n"),
    (KeyboardInterrupt(), 130, ""),
]


@pytest.mark.parametrize(("error", "code", "shown"), ENDS, ids=lambda part: type(part).__name__)
def test_an_error_ends_with_its_exit_code_and_its_message(
    error: BaseException, code: int, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("luthier.cli.methods.run", fail)
    assert call("methods") == code
    written = capsys.readouterr()
    assert written.err.lstrip("\n") == shown
    assert written.out == ""


def test_with_json_an_error_is_one_document_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise Failure("It broke.")

    monkeypatch.setattr("luthier.cli.methods.run", fail)
    assert call("methods", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["kind"] == "Failure"
    assert document["error"]["problems"][0]["what"] == "It broke."
    assert call("nothing", "--json") == 2
    assert "no verb" in json.loads(capsys.readouterr().out)["error"]["problems"][0]["what"]


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("luthier.cli.methods.run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["methods"])
    assert "bug in Luthier" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m luthier check --json-schema | head -c 20"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""


def test_the_environment_is_prepared_unless_the_user_has_done_it():
    code = "import os\nfrom luthier.cli.main import main\ntry:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
    code += "print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        env |= {"OMP_WAIT_POLICY": given} if given else {}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
        assert done.stdout.splitlines()[-1] == expected


def test_without_a_terminal_lines_are_neither_coloured_nor_wrapped(tmp_path):
    path = tmp_path / f"{'long' * 40}.yaml"
    path.write_text("model: starter\nmethod: lora\ndata: starter:quickstart\nepoks: 3\n")
    done = program("train", str(path), COLUMNS="40")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f'error: {path}:4: There is no key "epoks". Did you mean "epochs"?',
        "  → write epochs: 3",
    ]
