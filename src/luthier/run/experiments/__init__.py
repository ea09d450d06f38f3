"""Experiments: many runs of one recipe, compared on the same cases, or searched for the best."""
