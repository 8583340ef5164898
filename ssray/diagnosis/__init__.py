"""Is a category a texture, and which defects does its model repair (section 4.2)?"""

MIN_IMAGES = 3
"""Training images that a diagnosis needs at least."""
