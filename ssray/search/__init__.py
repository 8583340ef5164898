"""The search for better settings: what it varies, how its trials ended, ensembles of two models."""
