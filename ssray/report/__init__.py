"""Writes HTML pages that show an evaluation, a search or a diagnosis."""
