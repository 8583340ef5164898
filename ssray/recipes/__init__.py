"""Named recipes, recipe files, and the choice between them."""
