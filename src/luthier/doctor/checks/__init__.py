"""The checks of the doctor, one idea in each file."""

from __future__ import annotations

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


def all_checks(max_length: int | None = None) -> list[Check]:
    """Return every check that needs no model, each new. `max_length`: in tokens, where a recipe names it."""
    return [
        Answers(),
        Boilerplate(),
        Duplicates(),
        Encoding(),
        Labels(),
        Languages(),
        Lengths(max_length),
        Personal(),
        Roles(),
        Toxic(),
    ]
