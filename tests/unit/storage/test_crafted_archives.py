"""Archives with links and holes are read right, and crafted ones do no harm."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ssray.errors import DataError, ImageError
from ssray.nightly.preparing import Spent, _contents
from ssray.nightly.sources import CategoryRule, Source, find
from ssray.storage import fetch
from ssray.storage.archives import limits, listed, members, read_file
from ssray.storage.archives.names import link_target, normalised
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location

TARS = (".tar", ".tar.gz", ".TAR.BZ2", ".tar.xz")
ALL = (*TARS, ".ZIP")
Given = dict[str, bytes | str]
"""Contents or, by reason codes, why there is none."""


def pack(place: Path, infos: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Writes a tar of the kind that its suffix names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in infos:
            tar.addfile(info, io.BytesIO(content))
    write(place, buffer.getvalue())
    return place


def write(place: Path, tar: bytes) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".tgz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    place.write_bytes(packers.get(place.suffix.lower(), bytes)(tar))


def file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def pack_zip(place: Path, files: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(place, "w", method) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is, with backslashes
            info.compress_type = method
            archive.writestr(info, content)
    return place


def pack_as(suffix: str, place: Path, files: list[tuple[str, bytes]]) -> None:
    """Packs files by name and content into an archive of the kind that the suffix says."""
    pack_zip(place, files) if suffix == ".zip" else pack(place, [file(*each) for each in files])


def night(place: Path) -> Given:
    """What a night lists and reads of an archive, by path inside of it."""
    sources = list(find(Location.parse(place), CategoryRule(), Counter()))
    return read_by_night(place, sources)


def read_by_night(place: Path, sources: list[Source]) -> Given:
    found: Given = {}
    if sources:
        for source, read, _ in _contents(sources, Fetcher(attempts=1), Spent()):
            name = source.uri.removeprefix(f"{place}").removeprefix("#")
            assert name not in found
            try:
                found[name] = read()
            except ImageError as error:
                found[name] = error.code
    return found


def whole(place: Path) -> Given:
    """What a training lists and reads of it."""
    found: Given = {}
    for name, size in members(Location.parse(place)).items():
        try:
            found[name] = read_file(f"{place}#{name}")
            assert len(found[name]) == size
        except ImageError as error:
            assert size == 0
            found[name] = error.code
    return found


@pytest.mark.parametrize("suffix", TARS)
def test_links_are_what_they_point_to(tmp_path: Path, suffix: str) -> None:
    place = pack(
        tmp_path / f"weave{suffix}",
        [
            link("early.png", "a/0.png"),
            file("a/0.png", b"zero"),
            link("a/hard.png", "a/0.png", tarfile.LNKTYPE),
            link("b/up.png", "../a/0.png"),
            link("chain.png", "b/up.png"),
            link("folder", "a"),
            link("below.png", "folder/0.png"),
            link("loop.png", "pool.png"),
            link("pool.png", "loop.png"),
            link("self.png", "self.png"),
            link("grows", "grows/grows"),
            link("grown.png", "grows/x.png"),
            link("a/top", ".."),
            link("over.png", "a/top/a/0.png"),
            link("gone.png", "nowhere.png"),
            link("hard_gone.png", "nowhere.png", tarfile.LNKTYPE),
            link("to_folder.png", "b"),
            link("outside.png", "../../etc/passwd"),
            link("absolute.png", "/etc/passwd"),
            file("a/late.png", b"late"),
        ],
    )
    expected: Given = {
        **dict.fromkeys(["early.png", "a/0.png", "a/hard.png", "b/up.png"], b"zero"),
        **dict.fromkeys(["chain.png", "below.png", "over.png"], b"zero"),
        **dict.fromkeys(["loop.png", "pool.png", "self.png", "grown.png"], "bad_archive"),
        **dict.fromkeys(["gone.png", "hard_gone.png", "to_folder.png"], "missing"),
        **dict.fromkeys(["outside.png", "absolute.png"], "bad_archive"),
        "a/late.png": b"late",
    }
    assert night(place) == expected
    assert whole(place) == expected | {
        **dict.fromkeys(["folder", "a/top"], "missing"),
        "grows": "bad_archive",
    }


@pytest.mark.parametrize("suffix", TARS)
def test_a_list_may_name_links(tmp_path: Path, suffix: str) -> None:
    place = pack(
        tmp_path / f"weave{suffix}",
        [file("0.png", b"zero"), link("1.png", "0.png"), link("2.png", "3.png")],
    )
    names = ("0.png", "./1.png", "2.png", "4.png")
    sources = [Source(f"{place}#{name}", "weave") for name in names]
    assert read_by_night(place, sources) == {
        "0.png": b"zero",
        "./1.png": b"zero",
        "2.png": "missing",
        "4.png": "missing",
    }


def test_a_link_in_a_zip_is_what_it_points_to(tmp_path: Path) -> None:
    place = tmp_path / "weave.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("a/0.png", b"zero")
        for name, target in (("a/1.png", "0.png"), ("a/2.png", "/etc/passwd")):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    assert night(place) == {"a/0.png": b"zero", "a/1.png": b"zero", "a/2.png": "bad_archive"}


def holed() -> dict[str, bytes]:
    """Files with holes before, between and after what is in them, and one of nothing else."""
    noise = random.Random(0).randbytes
    many = b"".join(noise(512) + bytes(7680) for _ in range(60))
    return {
        "a/plain.png": noise(3000),
        "a/front.png": bytes(1 << 16) + noise(5000),
        "a/back.png": noise(4096) + bytes(1 << 16),
        "a/empty.png": bytes(100_000),
        f"a/{'long' * 40}.png": many,
        "z/last.png": noise(700),
    }


FORMATS = ("gnu", "oldgnu", "posix 0.0", "posix 0.1", "posix 1.0")


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
@pytest.mark.parametrize("form", FORMATS)
def test_sparse_files_have_their_holes(tmp_path: Path, suffix: str, form: str) -> None:
    files = holed()
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / "in" / name).open("wb") as out:
            for at in range(0, len(content), 4096):
                if any(content[at : at + 4096]):
                    out.seek(at)
                    out.write(content[at : at + 4096])
            out.truncate(len(content))
    kind, _, version = form.partition(" ")
    options = ["-S", "--hole-detection=raw", "--sort=name", f"--format={kind}"]
    options += [f"--sparse-version={version}"] if version else []
    subprocess.run(
        ["tar", *options, "-cf", tmp_path / "t.tar", "-C", tmp_path / "in", "."], check=True
    )
    content = (tmp_path / "t.tar").read_bytes()
    assert len(content) < sum(map(len, files.values())) / 2
    place = tmp_path / f"weave{suffix}"
    place.write_bytes(content if suffix == ".tar" else gzip.compress(content))
    assert night(place) == files
    assert whole(place) == files
    if suffix == ".tar":
        offsets = {m.name: m.offset for m in listed(Location.parse(place))}
        assert offsets["a/plain.png"] is not None, "still one byte range"
        assert offsets["a/empty.png"] is None


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_are_read_as_python_reads_them(tmp_path: Path, form: int) -> None:
    draw = random.Random(form)
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for number in range(60):
            folder = "/".join("d" * draw.randint(1, 60) for _ in range(draw.randint(0, 3)))
            info, content = file(f"{folder}/{number}é.png", draw.randbytes(draw.randint(0, 2000)))
            info.mtime = draw.random() * 1e9
            tar.addfile(info, io.BytesIO(content))
            tar.addfile(tarfile.TarInfo(f"empty{number}"))
    expected = {}
    with tarfile.open(tmp_path / "x.tar") as tar:
        for info in tar:
            extracted = tar.extractfile(info)
            assert extracted is not None
            expected[info.name.removeprefix("/")] = extracted.read()
    assert whole(tmp_path / "x.tar") == expected


@pytest.mark.parametrize("suffix", ALL)
def test_names_are_normalised_and_of_two_the_last_one_counts(tmp_path: Path, suffix: str) -> None:
    names = {
        "./a/0.png": "a/0.png",
        "/a/1.png": "a/1.png",
        r"a\2.png": "a/2.png",
        r"C:\a\3.png": "a/3.png",
        "../../a/4.png": "a/4.png",
        "a/./b/..//5.png": "a/5.png",
    }
    files = [(name, f"old {name}".encode()) for name in names]
    files += [("a/0.png", b"new"), ("./a/4.png", b"newer"), ("a/6.png", b"six")]
    place = tmp_path / f"weave{suffix}"
    if suffix == ".ZIP":
        pack_zip(place, files)
    else:
        pack(place, [file(*each) for each in files])
    expected = {path: f"old {name}".encode() for name, path in names.items()}
    expected |= {"a/0.png": b"new", "a/4.png": b"newer", "a/6.png": b"six"}
    assert night(place) == expected
    assert whole(place) == expected
    for name, path in names.items():
        assert read_file(f"{place}#{name}") == expected[path]
    [source] = [
        s for s in find(Location.parse(place), CategoryRule(), Counter()) if "2.png" in s.uri
    ]
    assert (source.category, source.uri) == ("weave", f"{place}#a/2.png")


def test_a_hard_link_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    """As when the tar is unpacked: the later file of that name is another one."""
    place = pack(
        tmp_path / "weave.tar",
        [file("0.png", b"old"), link("1.png", "0.png", tarfile.LNKTYPE), file("0.png", b"new")],
    )
    assert whole(place) == {"0.png": b"new", "1.png": b"old"}


def test_links_do_not_leave_their_archive() -> None:
    assert link_target("../b/0.png", "a") == "b/0.png"
    assert link_target("a/../../0.png") is None
    assert link_target(r"C:\0.png", "a") is None
    assert normalised("..") == ""


def headers(**records: str) -> bytes:
    """A file of 7 bytes with a pax header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info, content = file("bad.png", b"content")
        info.pax_headers = {key.replace("__", "."): value for key, value in records.items()}
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()[:2048]


def header(kind: bytes = b"0", size: bytes = b"00000000007\0", rest: bytes = b"") -> bytes:
    """A header with fields as they are, its checksum right, and what follows."""
    block = bytearray(tarfile.TarInfo("bad.png").tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + rest


def record(text: bytes) -> bytes:
    return header(b"x", b"%011o\0" % len(text), text.ljust(512, b"\0"))


OLD_SPARSE = bytearray(header(b"S"))
CRAFTED = {
    "size 2^62": header(size=b"\x80\0\0\0" + (2**62).to_bytes(8, "big")),
    "size 2^94": header(size=b"\x80" + b"\x7f" + b"\xff" * 10),
    "size below zero": header(size=b"\xff" * 11 + b"\x00"),
    "size of letters": header(size=b"seven bytes\0"),
    "pax size of 23 digits": headers(size="9" * 23),
    "pax size of 19 digits": headers(size="9" * 19),
    "pax size below zero": headers(size="-512"),
    "pax size of nothing": headers(size=""),
    "pax record too long": record(b"99999 path=x\n"),
    "pax record of length 0": record(b"0 path=x\n"),
    "pax record below zero": record(b"-9 path=x\n"),
    "pax record of a million digits": record(b"1" * 400),
    "pax header of 1 TiB": header(b"x", b"\x80" + (2**40).to_bytes(11, "big")),
    "long name of 1 TiB": header(b"L", b"\x80" + (2**40).to_bytes(11, "big")),
    "sparse 0.1, not in order": headers(GNU__sparse__size="100", GNU__sparse__map="50,3,0,4"),
    "sparse 0.1, below zero": headers(GNU__sparse__size="100", GNU__sparse__map="-9,7"),
    "sparse 0.1, odd": headers(GNU__sparse__size="100", GNU__sparse__map="0,7,9"),
    "sparse 0.1, beyond": headers(GNU__sparse__size="5", GNU__sparse__map="0,7"),
    "sparse 0.1 without size": headers(GNU__sparse__map="0,7"),
    "sparse 1.0 without map": headers(
        GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="100"
    ),
    "sparse 1.0 of 1 TiB of entries": headers(
        GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="7"
    )[:1536]
    + b"1099511627776\n".ljust(512, b"\0"),
    "old sparse without end": bytes(OLD_SPARSE[:482]) + b"\1" + bytes(OLD_SPARSE[483:]),
    "a broken checksum": header()[:200] + b"\7" + header()[201:] + b"content".ljust(512, b"\0"),
    "noise": random.Random(1).randbytes(1024),
    "five thousand pax headers": record(b"11 path=xy\n") * 5000,
}


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_tar_is_one_row_beside_what_stands_before(
    tmp_path: Path, suffix: str, what: str
) -> None:
    good = pack(tmp_path / "good.tar", [file("0.png", b"zero")]).read_bytes()[:1024]
    place = tmp_path / "night" / f"weave{suffix}"
    place.parent.mkdir()
    content = good + CRAFTED[what] + bytes(1024)
    place.write_bytes(content if suffix == ".tar" else gzip.compress(content))
    (tmp_path / "night/bolt").mkdir()
    (tmp_path / "night/bolt/0.png").write_bytes(b"bolt")
    sources = list(find(Location.parse(tmp_path / "night"), CategoryRule(), Counter()))
    assert [(s.uri.removeprefix(f"{tmp_path}/night/"), s.error) for s in sources] == [
        ("bolt/0.png", None),
        (f"weave{suffix}#0.png", None),
        (f"weave{suffix}", "bad_archive"),
    ]
    assert read_by_night(place, sources[1:]) == {"0.png": b"zero", "": "bad_archive"}
    with pytest.raises(DataError, match=f"weave{suffix}: damaged"):
        members(Location.parse(place))


def test_a_name_that_is_too_long_is_a_row(tmp_path: Path) -> None:
    name = "x" * 5000 + ".png"
    place = pack(tmp_path / "weave.tar", [file(name, b"long"), file("0.png", b"zero")])
    [long, short] = night(place).items()
    assert long[0].endswith("xxx.png") and len(long[0]) < 200 and long[1] == "bad_name"
    assert short == ("0.png", b"zero")


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_there_is_a_limit_to_files(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_MEMBERS", 3)
    place = tmp_path / f"weave{suffix}"
    files = [(f"{number}.png", b"x") for number in range(4)]
    pack_as(suffix, place, files)
    assert night(place)[""] == "bad_archive"
    with pytest.raises(DataError, match="more than 3 files; divide it"):
        members(Location.parse(place))


def test_there_is_a_limit_to_a_zips_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = pack_zip(tmp_path / "weave.zip", [("0.png", b"zero")])
    assert night(place) == {"0.png": b"zero"}
    monkeypatch.setattr(limits, "MAX_DIRECTORY_BYTES", 50)
    with pytest.raises(DataError, match="a directory of 51 bytes; at most 50"):
        list(listed(Location.parse(place)))


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_a_file_above_the_limit_is_a_row(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 100)
    place = tmp_path / f"weave{suffix}"
    files = [("0.png", b"zero"), ("large.png", bytes(101)), ("1.png", b"one")]
    pack_as(suffix, place, files)
    assert night(place) == {"0.png": b"zero", "large.png": "too_large", "1.png": b"one"}


@pytest.mark.parametrize("suffix", [".tgz", ".tar.bz2", ".tar.xz", ".zip"])
def test_what_unpacks_to_too_much_is_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UNPACKED_BYTES", 1_000_000)
    place = tmp_path / f"weave{suffix}"
    files = [(f"{number}.png", bytes(300_000)) for number in range(5)]
    if suffix == ".zip":
        pack_zip(place, files, zipfile.ZIP_DEFLATED)
    else:
        pack(place, [file(*each) for each in files])
    assert place.stat().st_size < 10_000
    found = night(place)
    assert found[""] == "bad_archive"
    assert found["0.png"] == bytes(300_000)
    assert len(found) <= 4


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, 12, 14])
def test_zips_of_every_method_are_read(tmp_path: Path, method: int) -> None:
    draw = random.Random(method)
    files = {f"{n}.png": draw.randbytes(n) + bytes(10 * n) for n in range(0, 5000, 700)}
    place = pack_zip(tmp_path / "weave.zip", list(files.items()), method)
    assert night(place) == files
    assert whole(place) == files


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zipped_file_gives_no_more_than_it_claims(
    tmp_path: Path, method: int, peak: object
) -> None:
    """A bomb that claims 4 bytes."""
    place = pack_zip(tmp_path / "weave.zip", [("0.png", bytes(1 << 28))], method)
    content = bytearray(place.read_bytes())
    at = content.index(b"PK\1\2")
    content[at + 24 : at + 28] = (4).to_bytes(4, "little")
    place.write_bytes(content)
    before = resident()
    assert night(place) == {"0.png": "bad_archive"}
    assert resident() - before < 1 << 25


@pytest.fixture
def peak() -> None:
    """Lets ``resident`` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> int:
    """The most bytes of memory that the process had since then."""
    [line] = [t for t in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in t]
    return int(line.split()[1]) * 1024


def change_entry(place: Path, field: int, value: bytes, entry: int = 0) -> None:
    """Writes into a field of a zip's directory."""
    content = bytearray(place.read_bytes())
    at = -1
    for _ in range(entry + 1):
        at = content.index(b"PK\1\2", at + 1)
    content[at + field : at + field + len(value)] = value
    place.write_bytes(content)


ZIP_FIELDS = {
    "encrypted": (8, b"\1\0", "bad_archive"),
    "an unknown method": (10, b"\x62\0", "bad_archive"),
    "another checksum": (16, b"1234", "bad_archive"),
    "packed size of 4 GiB": (20, b"\xfe\xff\xff\xff", "bad_archive"),
    "size of 4 GiB": (24, b"\xfe\xff\xff\xff", "too_large"),
    "one byte less": (24, b"\3\0\0\0", "bad_archive"),
    "the place of the other file": (42, b"\0\0\0\0", "bad_archive"),
    "a place beyond": (42, b"\0\0\0\1", "bad_archive"),
}


@pytest.mark.parametrize("what", ZIP_FIELDS)
def test_a_crafted_entry_of_a_zip_is_a_row(tmp_path: Path, what: str) -> None:
    field, value, code = ZIP_FIELDS[what]
    files = [("0.png", b"zero"), ("1.png", b"ones"), ("2.png", b"twos")]
    place = pack_zip(tmp_path / "weave.zip", files)
    change_entry(place, field, value, entry=1)
    found = night(place)
    assert found["1.png"] == code
    assert found["2.png"] == b"twos" or "packed size" in what
    assert found["0.png"] == b"zero" or "other file" in what


def test_a_zip_whose_directory_is_damaged_is_one_row(tmp_path: Path) -> None:
    place = pack_zip(tmp_path / "weave.zip", [("é.png", b"zero")])
    content = place.read_bytes()
    for bad in (
        content.replace("é".encode(), b"\xff\xfe"),
        content[:-10],
        content[:-8] + b"\xff" * 8,
        content.replace(b"PK\1\2", b"PK\7\2"),
    ):
        place.write_bytes(bad)
        assert night(place) == {"": "bad_archive"}


@pytest.mark.parametrize("comment", [b"", b"nothing was photographed"])
def test_an_empty_zip_is_an_archive_without_images(tmp_path: Path, comment: bytes) -> None:
    """It is the end of a directory alone: 22 bytes, and the comment."""
    place = tmp_path / "weave.zip"
    end = b"PK\5\6" + bytes(16) + len(comment).to_bytes(2, "little")
    place.write_bytes(end + comment)
    assert night(place) == {}
    assert members(Location.parse(place)) == {}


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_a_store_that_fails_is_not_a_damaged_archive(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / f"weave{suffix}"
    files = [(f"{n}.png", random.Random(n).randbytes(200_000)) for n in range(3)]
    pack_as(suffix, place, files)
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.0)
    failures = 5
    read_range = Location.read_range

    def failing(
        place: Location, offset: int, size: int, attempts: int = 1, etag: str | None = None
    ) -> bytes:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("SLOW_DOWN")
        return read_range(place, offset, size, attempts, etag)

    monkeypatch.setattr(Location, "read_range", failing)
    sources = list(find(Location.parse(place), CategoryRule(), Counter()))
    assert failures == 0
    assert [(source.error, source.size) for source in sources] == [(None, 200_000)] * 3
    failures = 3
    fetcher = Fetcher()
    uri = f"{place}#1.png"
    assert fetcher(uri, sources[1].size, sources[1].offset) == files[1][1]
    assert (failures, fetcher.retries) == (0, 3)


def test_a_compressed_tar_that_is_damaged_keeps_what_it_has(tmp_path: Path) -> None:
    files = [(f"{n}.png", random.Random(n).randbytes(5000)) for n in range(100)]
    place = pack(tmp_path / "weave.tgz", [file(*each) for each in files])
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 0x55
    place.write_bytes(content)
    found = night(place)
    assert found.pop("") == "bad_archive"
    assert {name: found[name] for name, _ in files[:40]} == dict(files[:40])


@pytest.mark.parametrize("suffix", [".tgz", ".tar.bz2", ".tar.xz"])
def test_compressed_streams_in_a_row_are_one_archive(tmp_path: Path, suffix: str) -> None:
    """As parallel packers write them; what follows and is none is ignored."""
    content = random.Random(0).randbytes(600_000)
    tar = pack(tmp_path / "x.tar", [file("0.png", content)]).read_bytes()
    place, piece = tmp_path / f"weave{suffix}", tmp_path / f"piece{suffix}"
    packed = b""
    for at in range(0, len(tar), 77_777):
        write(piece, tar[at : at + 77_777])
        packed += piece.read_bytes()
    place.write_bytes(packed + b"what follows")
    assert night(place) == {"0.png": content}
