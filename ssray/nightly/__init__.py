"""A night's images, each scored exactly once: what is to do, how a batch is done, and the record.

Nothing here knows of Ray; ``ssray.cluster.nightly`` distributes it.
"""
