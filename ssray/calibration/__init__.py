"""From a trained network to decisions: map settings, scales, thresholds, p-values."""
