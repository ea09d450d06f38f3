"""What was wrong with a command line, said as every other mistake is: what happened, and what to type instead."""

from __future__ import annotations

import shlex

import click
from click.exceptions import ClickException, NoSuchOption, UsageError

from luthier.core.errors import Problem, UserError, did_you_mean

_TAKE_OVERRIDES = ("train", "check")


def explain_usage(error: ClickException, argv: list[str]) -> UserError:
    """Return the user's error for a click error."""
    context = error.ctx if isinstance(error, UsageError) else None
    verb = context.info_name if context is not None and context.parent is not None else ""
    where = f"luthier {verb}".strip()
    if isinstance(error, NoSuchOption):
        return UserError(_unknown_option(error.option_name, verb or "", argv, context, where))
    words = [word for word in argv if not word.startswith("-")]
    if context is not None and context.parent is None and words and isinstance(context.command, click.Group):
        verbs = sorted(context.command.commands)
        if words[0] not in verbs:
            remedy = f"choose one of: {', '.join(verbs)}"
            if words[0].endswith((".yaml", ".yml", ".json")):
                remedy = f"say what to do with it, e.g. luthier train {words[0]}"
            return UserError(Problem(f'There is no verb "{words[0]}".{did_you_mean(words[0], verbs)}', where, remedy))
    return UserError(Problem(error.format_message(), where, f"{where} --help shows how it is used"))


def _unknown_option(option: str, verb: str, argv: list[str], context: click.Context | None, where: str) -> Problem:
    what = f"There is no option {option}."
    if context is not None:
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        near = did_you_mean(option, known)
        if near:
            return Problem(what + near, where, f"{where} --help shows the options")
    if verb in _TAKE_OVERRIDES and option.startswith("--"):
        key = option.lstrip("-").replace("-", "_")
        after = argv[argv.index(option) + 1 :] if option in argv else []
        given = next((word.partition("=")[2] for word in argv if word.startswith(f"{option}=")), "")
        value = given or (after[0] if after and not after[0].startswith("--") else "VALUE")
        return Problem(what, where, f"recipe keys are set without dashes: {shlex.quote(f'{key}={value}')}")
    return Problem(what, where, f"{where} --help shows the options")
