"""Scores all images of a night exactly once, also if it is interrupted and started again.

The images are listed, divided into batches and scored batch by batch; the results of each batch are
kept. Nothing here knows of Ray; ``ssray.cluster.nightly`` spreads the batches over a cluster.
"""
