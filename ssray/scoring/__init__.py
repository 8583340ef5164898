"""From images to anomaly maps, scores and verdicts, and to the figures of an evaluation."""
