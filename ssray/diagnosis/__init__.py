"""Measures whether a category is a texture, and which defects its model repairs (section 4.2)."""
