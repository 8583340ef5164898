"""The plumbing: the only package that imports ray."""
