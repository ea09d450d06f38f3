"""Measuring a model before and after: held-out loss, tasks, samples."""
