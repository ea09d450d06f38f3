"""The rules of advice, by what they look at; their order has no meaning."""

from luthier.advise.rules import architecture, constraints, data, memory, purpose, standing

RULES = (
    *standing.RULES,
    *memory.RULES,
    *architecture.RULES,
    *data.RULES,
    *purpose.RULES,
    *constraints.RULES,
)
