"""From a recipe to a run folder: config, stage, pipeline, report."""
