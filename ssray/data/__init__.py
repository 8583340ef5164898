"""Images: which there are, how they are decoded, and a generated data set to start with."""
