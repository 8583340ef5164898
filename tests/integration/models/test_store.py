"""The tests of a store on a disk, on an S3 server."""

from tests.unit.models.test_store import *  # noqa: F403
