"""Measures whether a category is a texture, and which defects its model repairs (section 4.2)."""

MIN_IMAGES = 3
"""The fewest training images that can be measured."""
