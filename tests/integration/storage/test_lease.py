"""The tests of leases on a disk, on an S3 server."""

from tests.unit.storage.test_lease import *  # noqa: F403
