"""How fast, in which order: optimizers and schedules. Importing this package registers them."""

from luthier.optim import adamw, adamw_8bit, schedules

__all__ = ["adamw", "adamw_8bit", "schedules"]
