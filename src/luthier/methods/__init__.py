"""What is trained: one file for each method. Importing this package registers them."""

from luthier.methods import bitfit, full, layers, lora

__all__ = ["bitfit", "full", "layers", "lora"]
