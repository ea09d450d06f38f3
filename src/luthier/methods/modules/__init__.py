"""The torch modules that methods put into a model. Imported when a method is applied, never by a recipe."""
