"""Asking a model for its judgement: the endpoint, the journal of what was answered, the questions."""
