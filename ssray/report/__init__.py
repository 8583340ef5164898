"""Pages of HTML: an evaluation, a search, a diagnosis."""
