"""Requests to S3: opening a bucket, reading, listing, and writes if nothing changed.

Endpoint, region and credentials are found as boto3 finds them: in the standard AWS variables
(``AWS_ENDPOINT_URL`` among them), in the profile that ``AWS_PROFILE`` names, or from the machine's
role. Objects are read with obstore, one request each, by boto3's credentials. Files that are read
here and there, and writes, go through pyarrow, which looks for credentials in the same places.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.config
import obstore
from botocore.exceptions import BotoCoreError, ClientError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError, PermissionDeniedError
from obstore.store import S3Store
from pyarrow import fs

from ssray.errors import ConflictError, too_large

# Ray shows the log of its workers, where botocore says for each client how it found the endpoint.
logging.getLogger("botocore").setLevel(logging.WARNING)

ATTEMPTS = 5
"""How often a request is made before its error is raised."""
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
_REFUSED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_ABSENT = frozenset({"NoSuchKey", "404"})
_NOT_OBSTORES = re.compile(r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]")
"""Finds keys that obstore refuses, or takes for others: with empty parts, or control characters."""
_CLIENT = {
    "allow_http": True,
    "read_timeout": timedelta(minutes=1),
    "timeout": timedelta(hours=1),  # of a whole object
}
_CREDENTIALS_FOR = timedelta(minutes=10)
"""How long credentials may be used until boto3 is asked again, which renews them in time."""

_Environment = tuple[tuple[str, str], ...]


def filesystem(bucket: str) -> fs.S3FileSystem:
    """Returns the filesystem of a bucket; it is made once for the same AWS variables.

    Raises:
        OSError: if the AWS variables or the profile are not valid, or no region is set and AWS
            does not know the bucket's either.
    """
    return _filesystem(bucket, _environment())


def read(
    bucket: str,
    key: str,
    span: tuple[int, int] | None = None,
    attempts: int = ATTEMPTS,
    most: int | None = None,
) -> bytes:
    """Returns the content of an object, or a part of it, in one request.

    Args:
        bucket: the name of the bucket.
        key: the object's key.
        span: the position of the part's first byte and the part's length, at least 1; of a part
            that goes beyond the object's end, what there is.
        attempts: how often the request is made before its error is raised.
        most: the largest object to read whole, in bytes; default: any.

    Raises:
        ImageError: with code ``too_large``, before any of the content is read.
        OSError: a ``FileNotFoundError`` if there is no such object, a ``PermissionError`` if the
            server refuses, another if it can't be reached or breaks off.
    """
    if _NOT_OBSTORES.search(key):
        return _get(bucket, key, span, most)[0]
    uri = f"s3://{bucket}/{key}"
    store = _store(bucket, attempts, _environment())
    try:
        if span:
            return bytes(obstore.get_range(store, key, start=span[0], length=span[1]))
        found = obstore.get(store, key)
        if most is not None and found.meta["size"] > most:
            raise too_large(uri, found.meta["size"], most)
        return bytes(found.bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri}: no such object") from None
    except PermissionDeniedError as error:
        raise PermissionError(f"{uri}: {_in_short(error)}") from None
    except BaseError as error:
        raise OSError(f"{uri}: {_in_short(error)}") from None


def read_tagged(bucket: str, key: str) -> tuple[bytes, str] | None:
    """Returns the content of an object and its ETag; None if there is no such object.

    Raises:
        OSError: if the server can't be reached or refuses.
    """
    try:
        return _get(bucket, key)
    except FileNotFoundError:
        return None


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
            there = read_tagged(bucket, key)
            if there and there[0] == content:  # written by an attempt whose answer got lost
                return
            raise ConflictError(
                f"s3://{bucket}/{key}: someone else wrote it first. Read it again before writing."
            ) from None
        raise OSError(f"s3://{bucket}/{key}: {error}") from None
    except BotoCoreError as error:
        raise OSError(f"s3://{bucket}/{key}: {error}") from None


def _get(
    bucket: str, key: str, span: tuple[int, int] | None = None, most: int | None = None
) -> tuple[bytes, str]:
    """Reads with boto3, which takes every key; returns the content and the ETag."""
    part = {"Range": f"bytes={span[0]}-{sum(span) - 1}"} if span else {}
    try:
        answer = _client(_environment()).get_object(Bucket=bucket, Key=key, **part)
        if most is not None and answer["ContentLength"] > most:
            raise too_large(f"s3://{bucket}/{key}", answer["ContentLength"], most)
        return answer["Body"].read(), answer["ETag"]
    except ClientError as error:
        kind = FileNotFoundError if _code(error) in _ABSENT else OSError
        raise kind(f"s3://{bucket}/{key}: {error}") from None
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
def _filesystem(bucket: str, environment: _Environment) -> fs.S3FileSystem:
    url, region = _server(bucket, environment)
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    endpoint = urlsplit(url)
    if endpoint.hostname and endpoint.hostname.endswith(_AWS_DOMAINS):
        return fs.S3FileSystem(region=region, retry_strategy=retries)
    return fs.S3FileSystem(
        region=region,
        scheme=endpoint.scheme,
        endpoint_override=endpoint.netloc + endpoint.path.rstrip("/"),
        retry_strategy=retries,
    )


@functools.lru_cache(maxsize=64)
def _store(bucket: str, attempts: int, environment: _Environment) -> S3Store:
    url, region = _server(bucket, environment)
    session = boto3.session.Session()
    try:
        known = session.get_credentials() is not None
        provider = Boto3CredentialProvider(session, ttl=_CREDENTIALS_FOR) if known else None
    except BotoCoreError as error:
        raise OSError(str(error)) from None
    return S3Store(
        bucket,
        endpoint=url,
        **({"region": region} if region else {}),
        skip_signature=not known,
        credential_provider=provider,
        client_options=_CLIENT,
        retry_config={"max_retries": attempts - 1},
    )


def delta_options(bucket: str) -> dict[str, str]:
    """Returns endpoint, region and credentials of a bucket as delta-rs takes them.

    Raises:
        OSError: as ``filesystem`` does.
    """
    url, region = _server(bucket, _environment())
    options = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": region or "us-east-1",
    }
    try:
        found = boto3.session.Session().get_credentials()
        if found is None:
            return options | {"AWS_SKIP_SIGNATURE": "true"}
        keys = found.get_frozen_credentials()
    except BotoCoreError as error:
        raise OSError(str(error)) from None
    options |= {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
    return options | ({"AWS_SESSION_TOKEN": keys.token} if keys.token else {})


def _server(bucket: str, environment: _Environment) -> tuple[str, str | None]:
    """Returns the URL of the server and the region, which only a server of AWS must have.

    Raises:
        OSError: as ``filesystem`` does.
    """
    try:
        meta = _client(environment).meta
    except BotoCoreError as error:
        raise OSError(str(error)) from None
    if meta.region_name != "aws-global":
        return meta.endpoint_url, meta.region_name
    if not urlsplit(meta.endpoint_url).hostname.endswith(_AWS_DOMAINS):
        return meta.endpoint_url, None
    region = fs.resolve_s3_region(bucket)
    return f"https://s3.{region}.amazonaws.com", region


def _in_short(error: BaseError) -> str:
    """What obstore says, in a line, without what it says to its developers."""
    return textwrap.shorten(str(error).partition("\n\nDebug source")[0], 400)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
