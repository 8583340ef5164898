"""Measures how well scores find defective images and maps find defective pixels.

Counts of constant size are kept instead of scores and maps; those of several workers add up.
"""
