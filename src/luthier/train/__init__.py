"""The engine: the only place with `.backward()`."""
