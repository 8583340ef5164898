"""A search for better settings: what is varied, how trials ended, ensembles of two."""
