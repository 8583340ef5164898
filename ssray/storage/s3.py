"""Requests to S3: opening a bucket, listing, and writes on the condition that nothing changed.

Endpoint, region and credentials are found as boto3 finds them: in the standard AWS variables
(``AWS_ENDPOINT_URL`` among them), in the profile that ``AWS_PROFILE`` names, or from the machine's
role. Reading and writing goes through pyarrow, which looks for credentials in the same places.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.config
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from ssray.errors import ConflictError

# Ray shows the log of its workers, where botocore says for each client how it found the endpoint.
logging.getLogger("botocore").setLevel(logging.WARNING)

ATTEMPTS = 5
"""How often a request is made before its error is raised."""
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
_REFUSED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_ABSENT = frozenset({"NoSuchKey", "404"})

_Environment = tuple[tuple[str, str], ...]


def filesystem(bucket: str, attempts: int = ATTEMPTS) -> fs.S3FileSystem:
    """Returns the filesystem of a bucket; it is made once for the same AWS variables.

    Args:
        bucket: the name of the bucket.
        attempts: how often a request is made before its error is raised.

    Raises:
        OSError: if the AWS variables or the profile are not valid, or no region is set and AWS
            does not know the bucket's either.
    """
    return _filesystem(bucket, attempts, _environment())


def read(bucket: str, key: str) -> tuple[bytes, str] | None:
    """Returns the content of an object and its ETag; None if there is no such object.

    Raises:
        OSError: if the server can't be reached or refuses.
    """
    try:
        answer = _client(_environment()).get_object(Bucket=bucket, Key=key)
        content: bytes = answer["Body"].read()
    except ClientError as error:
        if _code(error) in _ABSENT:
            return None
        raise OSError(f"s3://{bucket}/{key}: {error}") from None
    except BotoCoreError as error:
        raise OSError(f"s3://{bucket}/{key}: {error}") from None
    return content, answer["ETag"]


def list_objects(bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Yields key and size in bytes of each object whose key begins with a prefix.

    The listing is fetched a page at a time.

    Raises:
        OSError: if the server can't be reached or refuses.
    """
    pages = _client(_environment()).get_paginator("list_objects_v2")
    try:
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                yield entry["Key"], entry["Size"]
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"s3://{bucket}/{prefix}: {error}") from None


def write_if(bucket: str, key: str, content: bytes, tag: str | None) -> None:
    """Writes an object if its ETag is still ``tag``; for a tag of None, if it does not exist.

    Raises:
        ConflictError: if another process wrote it first.
        OSError: if the server can't be reached or refuses.
    """
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    try:
        _client(_environment()).put_object(Bucket=bucket, Key=key, Body=content, **condition)
    except ClientError as error:
        if _code(error) in _REFUSED or (tag is not None and _code(error) in _ABSENT):
            there = read(bucket, key)
            if there and there[0] == content:  # written by an attempt whose answer got lost
                return
            raise ConflictError(
                f"s3://{bucket}/{key}: someone else wrote it first. Read it again before writing."
            ) from None
        raise OSError(f"s3://{bucket}/{key}: {error}") from None
    except BotoCoreError as error:
        raise OSError(f"s3://{bucket}/{key}: {error}") from None


def _environment() -> _Environment:
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


@functools.lru_cache(maxsize=4)
def _client(environment: _Environment) -> Any:
    retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    return boto3.session.Session().client(
        "s3",
        config=botocore.config.Config(retries=retries),
    )


@functools.lru_cache(maxsize=64)
def _filesystem(bucket: str, attempts: int, environment: _Environment) -> fs.S3FileSystem:
    try:
        meta = _client(environment).meta
    except BotoCoreError as error:
        raise OSError(str(error)) from None
    endpoint = urlsplit(meta.endpoint_url)
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=attempts)
    region = None if meta.region_name == "aws-global" else meta.region_name
    if endpoint.hostname.endswith(_AWS_DOMAINS):
        region = region or fs.resolve_s3_region(bucket)
        return fs.S3FileSystem(region=region, retry_strategy=retries)
    return fs.S3FileSystem(
        region=region,
        scheme=endpoint.scheme,
        endpoint_override=endpoint.netloc + endpoint.path.rstrip("/"),
        retry_strategy=retries,
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
