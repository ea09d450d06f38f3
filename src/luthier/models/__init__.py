"""Models as Luthier sees them: loading, module roles, layer groups, packed attention."""
