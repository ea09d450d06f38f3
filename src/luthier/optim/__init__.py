"""How fast, in which order: optimizers and schedules. Importing this package registers them."""

from luthier.optim import adamw, schedules

__all__ = ["adamw", "schedules"]
