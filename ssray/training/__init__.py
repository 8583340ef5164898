"""One process's training: from images to a model artifact. Knows nothing of Ray."""
