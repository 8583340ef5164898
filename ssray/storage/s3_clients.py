"""Clients for S3, made once for the same AWS variables.

Endpoint, region and credentials are found as boto3 finds them: in the standard AWS variables
(``AWS_ENDPOINT_URL`` among them), in the profile that ``AWS_PROFILE`` names, or from the machine's
role. Objects are read with obstore by boto3's credentials. Files that are read here and there, and
writes, go through pyarrow, which looks for credentials in the same places.
"""

from __future__ import annotations

import functools
import logging
import os
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.config
from botocore.exceptions import BotoCoreError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store
from pyarrow import fs

# Ray shows the log of its workers, where botocore says for each client how it found the endpoint.
logging.getLogger("botocore").setLevel(logging.WARNING)

ATTEMPTS = 5
"""How often a request is made before its error is raised."""
BOUNDED_ATTEMPTS = 2
"""How often one is made whose time is bounded; between them boto3 waits a second at most."""
_CONNECTIONS = 64
"""How many connections boto3 keeps; with fewer than threads that ask it warns."""
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
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


def client(seconds: float | None = None) -> Any:
    """Returns boto3's client.

    Args:
        seconds: how long each of ``BOUNDED_ATTEMPTS`` waits for the connection, and for an answer;
            default: a minute each, in each of ``ATTEMPTS``.

    Raises:
        BotoCoreError: if the AWS variables or the profile are not valid.
    """
    return _client(_environment(), seconds)


def object_store(bucket: str, attempts: int) -> S3Store:
    """Returns obstore's client of a bucket; it makes a request ``attempts`` times at most.

    Raises:
        OSError: as ``filesystem`` does.
    """
    return _store(bucket, attempts, _environment())


def _environment() -> _Environment:
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


@functools.lru_cache(maxsize=8)
def _client(environment: _Environment, seconds: float | None) -> Any:
    waiting = {"connect_timeout": seconds, "read_timeout": seconds} if seconds else {}
    attempts = BOUNDED_ATTEMPTS if seconds else ATTEMPTS
    retries = {"mode": "standard", "total_max_attempts": attempts}
    config = botocore.config.Config(retries=retries, max_pool_connections=_CONNECTIONS, **waiting)
    return boto3.session.Session().client("s3", config=config)


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


def _server(bucket: str, environment: _Environment) -> tuple[str, str | None]:
    """Returns the URL of the server and the region, which only a server of AWS must have.

    Raises:
        OSError: as ``filesystem`` does.
    """
    try:
        meta = _client(environment, None).meta
    except BotoCoreError as error:
        raise OSError(str(error)) from None
    if meta.region_name != "aws-global":
        return meta.endpoint_url, meta.region_name
    if not urlsplit(meta.endpoint_url).hostname.endswith(_AWS_DOMAINS):
        return meta.endpoint_url, None
    region = fs.resolve_s3_region(bucket)
    return f"https://s3.{region}.amazonaws.com", region


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
