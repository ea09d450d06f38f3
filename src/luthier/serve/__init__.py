"""Pages that a person works with, served on this machine alone."""
