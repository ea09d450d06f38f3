"""`luthier label`: a person says which of two answers is better."""
