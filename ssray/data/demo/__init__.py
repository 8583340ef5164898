"""A generated data set in the layout of MVTec AD: textures, objects and their defects."""
