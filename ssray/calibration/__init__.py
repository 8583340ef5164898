"""Completes a trained network: settings of its anomaly maps, thresholds and p-values."""
