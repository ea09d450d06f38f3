"""What may look on while a run trains, and never changes it."""
