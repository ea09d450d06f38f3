"""Out of a run: merged Hugging Face folders and PEFT adapters."""
