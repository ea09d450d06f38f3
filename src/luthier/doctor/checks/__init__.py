"""The checks of the doctor, one idea in each file."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.doctor.base import Check
from luthier.doctor.checks.answers import Answers
from luthier.doctor.checks.boilerplate import Boilerplate
from luthier.doctor.checks.duplicates import Duplicates
from luthier.doctor.checks.encoding import Encoding
from luthier.doctor.checks.labels import Labels
from luthier.doctor.checks.languages import Languages
from luthier.doctor.checks.lengths import Lengths
from luthier.doctor.checks.personal import Personal
from luthier.doctor.checks.roles import Roles
from luthier.doctor.checks.toxic import Toxic
from luthier.doctor.checks.truncated import Truncated


def all_checks(max_length: int | None = None, words: Sequence[str] = ()) -> list[Check]:
    """Return every check that needs no model, each new.

    Args:
        max_length: in tokens, where a recipe names it.
        words: abusive ones of the user's own.
    """
    return [
        Answers(),
        Truncated(),
        Boilerplate(),
        Duplicates(),
        Encoding(),
        Labels(),
        Languages(),
        Lengths(max_length),
        Personal(),
        Roles(),
        Toxic(words),
    ]
