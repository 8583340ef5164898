"""Reading and writing files on disks and in S3: listing, archives, retries and leases."""
