"""A model as files, and the store of all versions."""
