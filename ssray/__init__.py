"""ssray: self-supervised visual anomaly detection on Ray."""

__version__ = "0.1.0"
