"""The tests of places on a disk, on an S3 server."""

from tests.unit.storage.test_location import *  # noqa: F403
