"""Finds, decodes and loads images, and generates a demo data set."""
