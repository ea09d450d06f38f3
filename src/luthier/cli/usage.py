"""What was wrong with a command line, said as every other mistake is: what happened, and what to type instead."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import cast

import typer

from luthier.core.errors import Problem, UserError, did_you_mean

# Newer typers carry a click of their own. BadParameter is the one of its exceptions that every version exports.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])

_TAKE_OVERRIDES = ("train", "check", "plan")


def explain_usage(message: str, context: typer.Context | None, argv: Sequence[str], verbs: Sequence[str]) -> UserError:
    """Return the user's error for a command line that typer refuses with `message` in the context of a verb."""
    words = [word for word in argv if not word.startswith("-")]
    if context is None or context.parent is None:
        if words and words[0] not in verbs:
            return UserError(_unknown_verb(words[0], verbs))
        return UserError(_unknown_option(argv, "", context) or Problem(message, "luthier", "see luthier --help"))
    verb = context.info_name or ""
    found = _unknown_option(argv, verb, context)
    return UserError(found or Problem(message, f"luthier {verb}", f"see luthier {verb} --help"))


def _unknown_verb(word: str, verbs: Sequence[str]) -> Problem:
    remedy = f"choose one of: {', '.join(sorted(verbs))}"
    if word.endswith((".yaml", ".yml", ".json")):
        remedy = f"say what to do with it, e.g. luthier train {shlex.quote(word)}"
    return Problem(f'There is no verb "{word}".{did_you_mean(word, verbs)}', "luthier", remedy)


def _unknown_option(argv: Sequence[str], verb: str, context: typer.Context | None) -> Problem | None:
    known = [name for parameter in context.command.params for name in parameter.opts] if context is not None else []
    known += ["--help", "-h"]
    for index, word in enumerate(argv):
        option, _, value = word.partition("=")
        if word == "--" or not word.startswith("--") or option in known:
            continue
        near = did_you_mean(option, known)
        remedy = f"see luthier {verb} --help".replace("  ", " ")
        if verb in _TAKE_OVERRIDES and not near:
            after = argv[index + 1] if len(argv) > index + 1 and not argv[index + 1].startswith("--") else "VALUE"
            key = option.lstrip("-").replace("-", "_")
            remedy = f"recipe keys are set without dashes: {shlex.quote(f'{key}={value or after}')}"
        return Problem(f"There is no option {option}.{near}", f"luthier {verb}".strip(), remedy)
    return None
