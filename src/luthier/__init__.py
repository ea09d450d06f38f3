"""Luthier fine-tunes language models: one engine, one recipe file, every mainstream method."""

__version__ = "0.1.0"
