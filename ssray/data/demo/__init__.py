"""Generates a data set of textures, objects and their defects, in the layout of MVTec AD."""
