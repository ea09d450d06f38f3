"""What everything stands on: components, errors, batches, log-probabilities, the run folder. Imports nothing above it."""
