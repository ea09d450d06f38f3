"""From a file to examples: sources → formats → render → stream."""
