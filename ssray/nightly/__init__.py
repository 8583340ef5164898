"""A night's images, each scored exactly once: what is to do, how a batch is done, and the record.

Nothing here knows of Ray; ``ssray.cluster.nightly`` distributes it.
"""

BATCH = 256
"""Images whose rows are kept together, and scored again together if they were not all scored."""
CATEGORY_PATTERN = r"(?P<category>[^/]+)/"
"""Where the path of an image names its category: the first folder."""
