"""Is a category a texture, and which defects does its model repair (section 4.2)?"""
