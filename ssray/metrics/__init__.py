"""Exact detection and localisation metrics from small, mergeable counts."""
