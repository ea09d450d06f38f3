"""Know before you train: memory, time and energy from a model's config, and which method fits."""
