"""Scores all images of a night exactly once, also if it is interrupted and started again.

The images are listed, divided into batches and scored batch by batch; the results of each batch are
kept. Nothing here knows of Ray; ``ssray.cluster.nightly`` spreads the batches over a cluster.
"""

BATCH = 256
"""Images whose rows are kept together, and scored again together if they were not all scored."""
PATIENCE_SECONDS = 3600.0
"""How long images are tried again that storage does not give."""
CATEGORY_PATTERN = r"(?P<category>[^/]+)/"
"""Where the path of an image names its category: the first folder."""
