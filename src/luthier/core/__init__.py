"""What everything stands on: components, errors, batches, log-probabilities, run folders. Imports nothing above."""
