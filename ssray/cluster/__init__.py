"""Trainings, scoring, searches and nights on Ray: the only package that imports it."""
