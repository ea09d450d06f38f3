"""What holds a model back while it learns: one file for each regularizer. Importing this package registers them."""

from luthier.regularizers import ewc, kl, l2_sp, neftune, replay

__all__ = ["ewc", "kl", "l2_sp", "neftune", "replay"]
