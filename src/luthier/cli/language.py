"""The language of what a verb prints."""

from luthier.core.language import Language, language_of

__all__ = ["Language", "language_of"]
