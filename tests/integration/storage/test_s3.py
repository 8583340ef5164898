"""What only an S3 server can refuse or grant, and how often it is asked."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import obstore
import pytest

from ssray.data.dataset import categories, index_dataset, index_images
from ssray.errors import DataError, ImageError
from ssray.models.store import publish, published, published_version, rollback, versions
from ssray.nightly.sources import CategoryRule, find
from ssray.storage import fetch, s3, s3_clients
from ssray.storage.fetch import Fetcher
from ssray.storage.lease import Lease
from ssray.storage.listing import walk
from ssray.storage.location import Location
from ssray.storage.s3_clients import ATTEMPTS
from tests.helpers import Ended
from tests.integration.cluster import faulty_proxy
from tests.integration.cluster.faulty_proxy import Traffic
from tests.unit.storage.test_replaced import archive


def test_a_bucket_that_is_not_there_is_named(s3_server: str) -> None:
    place = Location.parse("s3://nowhere/models")
    with pytest.raises(DataError, match="s3://nowhere/models: no such bucket"):
        place.make_folder()
    assert not place.exists()


def test_what_asks_for_a_bucket_that_is_not_there_says_so(s3_server: str) -> None:
    place = Location.parse("s3://nowhere/models")
    for ask in (
        lambda: list(walk(place)),
        lambda: categories(place),
        lambda: index_images(place, "weave"),
        place.check_bucket,
        place.read_tagged,
        lambda: Lease(place / "lease", "the work").__enter__(),
        lambda: published(place),
        lambda: published_version(place, "weave"),
        lambda: versions(place, "weave"),
        lambda: publish(place, "weave", "v1", None),
        lambda: rollback(place, "weave"),
    ):
        with pytest.raises(DataError, match=f"^{place}.*: no such bucket. Create it, or check"):
            ask()


def test_a_wrong_key_is_refused_by_name(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    place = Location.parse(f"s3://{s3_server}/models")
    with pytest.raises(DataError, match=f"{place}: can't be created"):
        place.make_folder()
    with pytest.raises(OSError, match=f"{place}/x: access refused. Check the AWS variables"):
        (place / "x").read_tagged()
    asking: list[Callable[[], object]] = [place.exists, place.is_dir, place.children, place.files]
    asking.append(lambda: list(walk(place)))
    for ask in asking:
        with pytest.raises(DataError, match=f"{place}: may not be listed. Check the AWS variab"):
            ask()
    with pytest.raises(DataError, match=f"{place}: may not be listed. Check the AWS variables"):
        published(place)
    with pytest.raises(OSError, match=r"json: access refused\. Check the AWS vari") as told:
        published_version(place, "weave")
    assert "\n" not in str(told.value)


def test_endpoint_and_credentials_may_come_from_a_profile(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (
        f"[profile plant]\nregion = us-east-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n"
    )
    keys = "[plant]\naws_access_key_id = tester\naws_secret_access_key = not-a-secret\n"
    (tmp_path / "config").write_text(config)
    (tmp_path / "credentials").write_text(keys)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "plant")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    place = Location.parse(f"s3://{s3_server}/{tmp_path.name}/x")
    place.write(b"by profile")
    assert place.read() == b"by profile"
    assert place.read_tagged() is not None


def put(bucket: str, key: str, content: bytes = b"content") -> None:
    """Writes an object by a key that pyarrow might refuse."""
    s3.write_if(bucket, key, content, None)


def test_an_empty_object_does_not_hide_the_prefix_of_its_name(
    s3_server: str, tmp_path: Path
) -> None:
    prefix = f"{tmp_path.name}/data"
    for mark in (prefix, f"{prefix}/part", f"{prefix}/part/train"):
        put(s3_server, mark, b"")
    names = ["part/test/good/0.png", "part/train/good/0.png", "part/train/good/1.png"]
    for name in names:
        put(s3_server, f"{prefix}/{name}")
    root = Location.parse(f"s3://{s3_server}/{prefix}")
    assert root.is_dir()
    assert categories(root) == ["part"]
    assert sorted(index_dataset(root)["uri"].to_pylist()) == [f"{root}/{name}" for name in names]
    assert len(index_images(root / "part", "part")) == 3
    put(s3_server, f"{prefix}-2/empty.png", b"")
    empty = Location.parse(f"s3://{s3_server}/{prefix}-2/empty.png")
    assert not empty.is_dir()
    assert [(file.path, file.size) for file in walk(empty)] == [("empty.png", 0)]


def test_hidden_objects_are_left_out(s3_server: str, tmp_path: Path) -> None:
    prefix = f"{tmp_path.name}/.night"
    for name in ("a/0.png", "a/.ipynb_checkpoints/0.png", "__MACOSX/a/0.png", "a/Thumbs.db"):
        put(s3_server, f"{prefix}/{name}")
    images = index_images(Location.parse(f"s3://{s3_server}/{prefix}"), "a")
    assert images["uri"].to_pylist() == [f"s3://{s3_server}/{prefix}/a/0.png"]


def test_a_key_of_two_slashes_is_read_where_it_is_found(s3_server: str, tmp_path: Path) -> None:
    put(s3_server, f"{tmp_path.name}/a//0.png")
    [found] = walk(Location.parse(f"s3://{s3_server}/{tmp_path.name}"))
    assert Location.parse(found.place.uri).read() == b"content"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "{place}", "--models", "{tmp}"],
        ["evaluate", "--data", "{tmp}", "--models", "{place}", "--out", "{tmp}"],
        ["models", "list", "--models", "{place}"],
    ],
)
def test_two_slashes_in_a_row_are_told_in_a_line(
    program: Callable[..., Ended], s3_server: str, tmp_path: Path, arguments: list[str]
) -> None:
    place = f"s3://{s3_server}//models"
    ended = program(*(argument.format(place=place, tmp=tmp_path) for argument in arguments))
    assert ended.code in (1, 2)
    assert f"did you mean s3://{s3_server}/models?" in ended.err + ended.out.replace("\n", " ")
    assert "Traceback" not in ended.err + ended.out


@contextmanager
def between(monkeypatch: pytest.MonkeyPatch, *faults: str) -> Iterator[Traffic]:
    """What asks the server from here on meets a fault each time, if there are any."""
    monkeypatch.setattr(faulty_proxy, "FAULTS", faults)
    with faulty_proxy.between(1.0 if faults else 0.0) as traffic:
        yield traffic


@pytest.fixture
def folder(s3_server: str, tmp_path: Path) -> str:
    """An empty folder's URI."""
    return f"s3://{s3_server}/{tmp_path.name}"


@pytest.mark.parametrize("size", [1, 3_000_000], ids=["small", "large"])
def test_an_image_is_one_request(folder: str, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    content = os.urandom(size)
    Location.parse(f"{folder}/0.png").write(content)
    Location.parse(f"{folder}/weave.tar").write(b"head" + content + b"tail")
    with between(monkeypatch) as traffic:
        fetcher = Fetcher()
        assert fetcher(f"{folder}/0.png", size) == content
        assert traffic.faults.total() == 1
        assert fetcher(f"{folder}/weave.tar#0.png", size, 4) == content
        assert traffic.faults.total() == 2
        assert Location.parse(f"{folder}/0.png").read() == content
        assert traffic.faults.total() == 3


@pytest.mark.parametrize(
    ("suffix", "first", "more"), [(".tar", 1, 1), (".zip", 5, 1), (".tgz", 3, 1)]
)
def test_a_member_of_an_archive_is_one_request_once_it_is_open(
    folder: str, monkeypatch: pytest.MonkeyPatch, suffix: str, first: int, more: int
) -> None:
    """One of a plain tar at once; of others size and directory, or all of it, come before."""
    files = {f"{n}.png": os.urandom(200_000) for n in range(3)}
    Location.parse(f"{folder}/weave{suffix}").write(archive(suffix, files))
    sources = list(find(Location.parse(folder), CategoryRule(fixed="weave"), Counter()))
    with between(monkeypatch) as traffic:
        fetcher, made = Fetcher(), [0]
        for source in sources:
            content = fetcher(source.uri, source.size, source.offset, source.etag)
            assert content == files[source.uri[-5:]]
            made.append(traffic.faults.total())
        assert [b - a for a, b in itertools.pairwise(made)] == [first, more, more]


def test_a_key_that_obstore_refuses_is_read_as_it_was_listed(s3_server: str, folder: str) -> None:
    client = boto3.session.Session().client("s3")
    place = Location.parse(folder) / "a//0.png"
    key = place.path.removeprefix(f"{s3_server}/")
    client.put_object(Bucket=s3_server, Key=key, Body=b"content")
    [listed] = walk(Location.parse(folder))
    assert listed.etag is not None
    assert place.read(etag=listed.etag) == b"content"
    assert place.read_range(1, 3, etag=listed.etag) == b"ont"
    client.put_object(Bucket=s3_server, Key=key, Body=b"another")
    reading: list[Callable[[], bytes]] = [
        lambda: Fetcher()(place.uri, listed.size, None, listed.etag),
        lambda: place.read_range(1, 3, etag=listed.etag),
    ]
    for read in reading:
        with pytest.raises(ImageError, match=r"a//0\.png: was replaced") as raised:
            read()
        assert (raised.value.code, raised.value.transient) == ("changed", True)


def test_keys_may_hold_what_paths_may_not(s3_server: str, folder: str) -> None:
    """Empty parts and control characters, which obstore refuses, and all that URLs escape."""
    client = boto3.session.Session().client("s3")
    prefix = folder.removeprefix(f"s3://{s3_server}/")
    for name in ("a//b.png", "tab\t.png", "%2F?x#y&z=1*~^`{}|\\<>\"'[]:;,@!$ .png"):
        content = name.encode()
        client.put_object(Bucket=s3_server, Key=f"{prefix}/{name}", Body=content)
        place = Location.parse(folder) / name
        assert place.read() == content
        assert place.read_range(1, 3) == content[1:4]


@pytest.mark.parametrize("name", ["0.png", "a//0.png"])
def test_an_object_beyond_the_limit_is_refused_before_it_is_read(
    s3_server: str, folder: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 10)
    key = f"{folder}/{name}".removeprefix(f"s3://{s3_server}/")
    put(s3_server, key, bytes(11))
    for size in (None, 11):
        with pytest.raises(ImageError, match="11 bytes; at most 10 are read") as error:
            Fetcher()(f"{folder}/{name}", size)
        assert error.value.code == "too_large"


def test_what_the_server_refuses_has_a_code(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut answer is an error, however often it is tried; nothing is tried again in vain."""
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.001)
    Location.parse(f"{folder}/0.png").write(bytes(1000))

    def code(uri: str) -> tuple[str, int]:
        fetcher = Fetcher(attempts=3)
        with pytest.raises(ImageError) as raised:
            fetcher(uri, 1000)
        assert uri in str(raised.value)
        assert "\n" not in str(raised.value)
        assert raised.value.transient == (raised.value.code != "missing")
        return raised.value.code, fetcher.retries

    assert code(f"{folder}/1.png") == ("missing", 0)
    assert code("s3://nowhere/0.png") == ("missing", 0)
    for fault in ("cut", "refused", "error_500", "error_503"):
        with monkeypatch.context() as patch, between(patch, fault) as traffic:
            assert code(f"{folder}/0.png") == ("unreadable", 2)
            assert traffic.faults[fault] == 3
            with pytest.raises(OSError, match=f"{folder}/0.png"):
                Location.parse(f"{folder}/0.png").read()
            assert traffic.faults[fault] == 3 + ATTEMPTS
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        for name in ("0.png", "weave.tar#0.png", "weave.zip#0.png", "weave.tgz#0.png", "a//0.png"):
            assert code(f"{folder}/{name}") == ("forbidden", 0)
    with monkeypatch.context() as patch:
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.delenv(name)
        assert Fetcher()(f"{folder}/0.png", 1000) == bytes(1000)
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        assert code(f"{folder}/0.png") == ("forbidden", 0)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        assert code(f"{folder}/0.png") == ("unreadable", 2)


def test_every_key_is_listed_as_it_is_and_marks_of_folders_are_not(s3_server: str) -> None:
    names = ["..x/f.png", "a b#\N{LATIN SMALL LETTER U WITH DIAERESIS}%20?.png", "e\x01.png", "z"]
    for name in (*names, "folder/", "b.png/"):
        content = b"" if name[-1] in "z/" else b"1"
        s3_clients.client().put_object(Bucket=s3_server, Key=f"odd keys/{name}", Body=content)
    for number in range(3):
        (Location.parse(f"s3://{s3_server}/odd keys") / f"x/{number}.png").write(b"12")
    found = list(s3.list_objects(s3_server, "odd keys/"))
    expected = sorted([*names, *(f"x/{number}.png" for number in range(3))])
    assert [entry.key.removeprefix("odd keys/") for entry in found] == expected
    assert [entry.size for entry in found] == [1, 1, 1, 2, 2, 2, 0]
    assert found == list(s3._listed_by_boto3(s3_server, "odd keys/", ""))
    with pytest.raises(s3.NoBucketError):
        list(s3.list_objects("nobody-has-it", ""))


def test_a_key_that_obstore_refuses_is_listed_by_boto3(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Location.parse(f"s3://{s3_server}/strange")
    for number in range(6):
        (place / f"{number}.png").write(b"1")
    lister = obstore.list

    def breaking_off(*arguments: object, **options: object) -> Iterator[object]:
        [page] = lister(*arguments, **options)
        yield page[:2]
        raise obstore.exceptions.GenericError("Encountered object with invalid path: ...")

    monkeypatch.setattr(obstore, "list", breaking_off)
    found = [entry.key for entry in s3.list_objects(s3_server, "strange/")]
    assert found == [f"strange/{number}.png" for number in range(6)]
