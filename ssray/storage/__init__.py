"""Bytes, wherever they are: paths and S3, listing, archives, reads with retries, leases."""
