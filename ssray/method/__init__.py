"""The paper as code: corruption, autoencoder, objective, anomaly map.

Pure functions of tensors, generators and configuration. Nothing here reads a file,
knows of Ray or touches global random state.

Shape letters: B images, C colour channels, H rows, W columns, K disks.
"""
