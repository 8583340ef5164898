"""Requests to S3: reading, listing, and writes if nothing changed.

Objects are read with obstore, one request each, or with boto3 where obstore refuses their keys.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import obstore
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError

from ssray.errors import ConflictError, changed, too_large
from ssray.storage.s3_clients import ATTEMPTS, client, object_store

if TYPE_CHECKING:
    from obstore import GetOptions

_REFUSED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_ABSENT = frozenset({"NoSuchKey", "404"})
NO_BUCKET = "no such bucket. Create it, or check its name."
"""What is said of a bucket that is not there."""
_NOT_FOUND, _FORBIDDEN, _PRECONDITION_FAILED = 404, 403, 412
_REFUSALS = (
    *("ACCESS_DENIED", "SIGNATURE_DOES_NOT_MATCH", "INVALID_ACCESS_KEY_ID"),
    *("AccessDenied", "HTTP status 403"),
)
"""What errors of pyarrow and boto3 say where access is refused."""
_STRANGE_KEY = "invalid path"
"""What obstore says of a listing with a key that it can't tell."""
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""What obstore puts in place of control characters."""
_NO_SUCH_BUCKET = "NoSuchBucket"
_NOT_OBSTORES = re.compile(r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]")
"""Finds keys that obstore refuses, or takes for others: with empty parts, or control characters."""


class NoBucketError(FileNotFoundError):
    """The bucket itself is not there."""


class Entry(NamedTuple):
    """An object as a listing tells it: its key, its size in bytes and its ETag."""

    key: str
    size: int
    etag: str | None


def read(
    bucket: str,
    key: str,
    span: tuple[int, int] | None = None,
    attempts: int = ATTEMPTS,
    most: int | None = None,
    etag: str | None = None,
) -> bytes:
    """Returns the content of an object, or a part of it, in one request.

    Args:
        bucket: the name of the bucket.
        key: the object's key.
        span: the position of the part's first byte and the part's length, at least 1; of a part
            that goes beyond the object's end, what there is.
        attempts: how often the request is made before its error is raised.
        most: the largest object to read whole, in bytes; default: any.
        etag: what the object's ETag must still be; default: any.

    Raises:
        ImageError: with code ``too_large``, before any of the content is read; ``changed`` if the
            object has another ETag.
        OSError: a ``FileNotFoundError`` if there is no such object, a ``PermissionError`` if the
            server refuses, another if it can't be reached or breaks off.
    """
    if _NOT_OBSTORES.search(key):
        return _get(bucket, key, span, most, etag)[0]
    uri = f"s3://{bucket}/{key}"
    store = object_store(bucket, attempts)
    options: GetOptions = {"if_match": etag} if etag else {}
    if span:
        options["range"] = (span[0], sum(span))
    try:
        found = obstore.get(store, key, options=options)
        if most is not None and found.meta["size"] > most:
            raise too_large(uri, found.meta["size"], most)
        return bytes(found.bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri}: no such object") from None
    except PermissionDeniedError as error:
        raise _refused(uri, _in_short(error)) from None
    except PreconditionError:
        raise changed(uri) from None
    except BaseError as error:
        raise OSError(f"{uri}: {_in_short(error)}") from None


def head(bucket: str, key: str) -> tuple[int, str]:
    """Returns an object's size in bytes and its ETag.

    Raises:
        OSError: as ``read`` does.
    """
    try:
        answer = client().head_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        raise _raised(f"s3://{bucket}/{key}", error) from None
    return answer["ContentLength"], answer["ETag"]


def read_tagged(
    bucket: str, key: str, most: int | None = None, seconds: float | None = None
) -> tuple[bytes, str] | None:
    """Returns the content of an object and its ETag; None if there is no such object.

    Args:
        bucket: the name of the bucket.
        key: the object's key.
        most: the largest object to read, in bytes; default: any.
        seconds: how long each of ``BOUNDED_ATTEMPTS`` waits for the connection, and for an answer;
            default: as boto3 waits, a minute each.

    Raises:
        ImageError: with code ``too_large``, before any of the content is read.
        OSError: if the server can't be reached or refuses; a ``NoBucketError`` if there is no such
            bucket.
    """
    try:
        return _get(bucket, key, most=most, seconds=seconds)
    except NoBucketError:
        raise
    except FileNotFoundError:
        return None


def check_bucket(bucket: str) -> None:
    """Makes sure that a bucket is there.

    Raises:
        OSError: a ``NoBucketError`` if it is not, or as ``read`` does.
    """
    try:
        client().head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        found = _raised(f"s3://{bucket}", error)
        raise _no_bucket(bucket) if isinstance(found, FileNotFoundError) else found from None


def list_objects(bucket: str, prefix: str) -> Iterator[Entry]:
    """Yields each object whose key begins with a prefix, in the order of the keys.

    The listing is fetched a page at a time by obstore, which takes a twentieth of boto3's time.
    From a key on that obstore can't tell, boto3 goes on. Objects that mark a folder, whose key ends
    with a slash, are left out.

    Args:
        bucket: the name of the bucket.
        prefix: nothing, or what ends with a slash.

    Raises:
        OSError: if the server can't be reached or refuses.
    """
    uri, last = f"s3://{bucket}/{prefix}", ""
    try:
        for page in obstore.list(object_store(bucket, ATTEMPTS), prefix=prefix or None):
            for found in page:
                key, size = found["path"], found["size"]
                if _UNREADABLE in key:
                    yield from _listed_by_boto3(bucket, prefix, last)
                    return
                last = key
                if key.startswith(prefix) and (size or _is_no_folder(bucket, key)):
                    yield Entry(key, size, found["e_tag"])
    except PermissionDeniedError as error:
        raise _refused(uri, _in_short(error)) from None
    except BaseError as error:
        if _NO_SUCH_BUCKET in str(error):
            raise _no_bucket(bucket) from None
        if _STRANGE_KEY not in str(error):
            raise OSError(f"{uri}: {_in_short(error)}") from None
        yield from _listed_by_boto3(bucket, prefix, last)


def _listed_by_boto3(bucket: str, prefix: str, after: str) -> Iterator[Entry]:
    pages = client().get_paginator("list_objects_v2")
    try:
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=after):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield Entry(entry["Key"], entry["Size"], entry.get("ETag"))
    except (BotoCoreError, ClientError) as error:
        raise _raised(f"s3://{bucket}/{prefix}", error) from None


def _is_no_folder(bucket: str, key: str) -> bool:
    """Tells an empty object from the mark of a folder, of whose key obstore drops the slash."""
    try:
        head(bucket, key)
    except FileNotFoundError:
        return False
    except OSError:  # whoever reads it will be told
        return True
    return True


def write(bucket: str, key: str, content: bytes) -> None:
    """Writes an object in one request, or as several parts if it is large.

    Raises:
        OSError: if the server can't be reached or refuses.
    """
    uri = f"s3://{bucket}/{key}"
    try:
        if _NOT_OBSTORES.search(key):
            client().put_object(Bucket=bucket, Key=key, Body=content)
        else:
            obstore.put(object_store(bucket, ATTEMPTS), key, content)
    except (BotoCoreError, ClientError) as error:
        raise _raised(uri, error) from None
    except PermissionDeniedError as error:
        raise _refused(uri, _in_short(error)) from None
    except FileNotFoundError:
        raise _no_bucket(bucket) from None
    except BaseError as error:
        raise OSError(f"{uri}: {_in_short(error)}") from None


def write_if(
    bucket: str, key: str, content: bytes, tag: str | None, seconds: float | None = None
) -> None:
    """Writes an object if its ETag is still ``tag``; for a tag of None, if it does not exist.

    Args:
        bucket: the name of the bucket.
        key: the object's key.
        content: what to write.
        tag: the ETag.
        seconds: as in ``read_tagged``.

    Raises:
        ConflictError: if another process wrote it first.
        OSError: if the server can't be reached or refuses.
    """
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    try:
        client(seconds).put_object(Bucket=bucket, Key=key, Body=content, **condition)
    except ClientError as error:
        if _code(error) in _REFUSED or (tag is not None and _code(error) in _ABSENT):
            there = read_tagged(bucket, key, seconds=seconds)
            if there and there[0] == content:  # written by an attempt whose answer got lost
                return
            raise ConflictError(
                f"s3://{bucket}/{key}: someone else wrote it first. Read it again before writing."
            ) from None
        raise _raised(f"s3://{bucket}/{key}", error) from None
    except BotoCoreError as error:
        raise _raised(f"s3://{bucket}/{key}", error) from None


def is_refusal(error: OSError) -> bool:
    """Tells whether an error means that access is forbidden, so that a retry can't help."""
    return isinstance(error, PermissionError) or any(word in str(error) for word in _REFUSALS)


def _get(
    bucket: str,
    key: str,
    span: tuple[int, int] | None = None,
    most: int | None = None,
    etag: str | None = None,
    seconds: float | None = None,
) -> tuple[bytes, str]:
    """Reads with boto3, which takes every key; returns the content and the ETag."""
    condition = {"IfMatch": etag} if etag else {}
    if span:
        condition["Range"] = f"bytes={span[0]}-{sum(span) - 1}"
    try:
        answer = client(seconds).get_object(Bucket=bucket, Key=key, **condition)
        if most is not None and answer["ContentLength"] > most:
            raise too_large(f"s3://{bucket}/{key}", answer["ContentLength"], most)
        return answer["Body"].read(), answer["ETag"]
    except (BotoCoreError, ClientError) as error:
        raise _raised(f"s3://{bucket}/{key}", error) from None


def _in_short(error: BaseError) -> str:
    """What obstore says, in a line, without what it says to its developers."""
    return textwrap.shorten(str(error).partition("\n\nDebug source")[0], 400)


def _raised(uri: str, error: BotoCoreError | ClientError) -> Exception:
    """What is raised in place of an error of boto3."""
    if isinstance(error, ClientError):
        if _code(error) == "NoSuchBucket":
            return _no_bucket(uri.removeprefix("s3://").partition("/")[0])
        if _status(error) == _NOT_FOUND:
            return FileNotFoundError(f"{uri}: no such object")
        if _status(error) == _FORBIDDEN:
            return _refused(uri, str(error))
        if _status(error) == _PRECONDITION_FAILED:
            return changed(uri)
    return OSError(f"{uri}: {' '.join(str(error).split())}")


def _no_bucket(bucket: str) -> NoBucketError:
    return NoBucketError(f"s3://{bucket}: {NO_BUCKET}")


def _refused(uri: str, why: str) -> PermissionError:
    return PermissionError(
        f"{uri}: access refused. Check the AWS variables and what they allow. ({why})"
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
