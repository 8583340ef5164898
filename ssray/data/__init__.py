"""Where images are, what they hold, and a generated set to start with."""
