"""What everything stands on: components, errors, batches, log-probabilities, the run folder. It imports nothing above."""
