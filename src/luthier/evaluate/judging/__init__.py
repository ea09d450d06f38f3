"""Judging answers offline: rows in, preferences or scores out."""
