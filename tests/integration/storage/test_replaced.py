"""The tests of files that are replaced on a disk, on an S3 server."""

from tests.unit.storage.test_replaced import *  # noqa: F403
