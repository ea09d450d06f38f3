"""The small model and data that ship with Luthier."""
