"""Detection and localisation metrics from small, mergeable counts."""
