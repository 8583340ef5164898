"""Tables of labels that came after the night: what counts, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssray.errors import DataError
from ssray.metrics.labels import DEFECT, GOOD
from ssray.nightly.labels import WORDS, read_labels
from ssray.storage.location import Location


def read_csv(folder: Path, content: str | bytes) -> dict[str, int]:
    place = folder / "labels.csv"
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_labels(Location.parse(place)).of


def read_parquet(folder: Path, **columns: Any) -> dict[str, int]:
    place = folder / "labels.parquet"
    pq.write_table(pa.table(columns), place)
    return read_labels(Location.parse(place)).of


def test_every_word_says_what_it_says_however_it_is_written(tmp_path: Path) -> None:
    rows = [f"/{word}.png,{written}" for word in WORDS for written in (word, f" {word.title()} ")]
    found = read_csv(tmp_path, "\n".join(["uri,label", *rows]))
    good, defect = ("0", "good", "ok", "false"), ("1", "defect", "ng", "true")
    assert found == {f"/{word}.png": GOOD for word in good} | {
        f"/{word}.png": DEFECT for word in defect
    }


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([0, 1], pa.int8()),
        pa.array([0.0, 1.0]),
        pa.array([False, True]),
        pa.array(["ok", "NG"]),
        pa.array(["good", "defect"]).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_parquet_has_labels_of_any_type(tmp_path: Path, labels: pa.Array) -> None:
    found = read_parquet(tmp_path, uri=["s3://b/1.png", "s3://b/2.png"], label=labels, more=[1, 2])
    assert found == {"s3://b/1.png": GOOD, "s3://b/2.png": DEFECT}


def test_a_relative_name_is_below_the_folder_of_the_table(tmp_path: Path) -> None:
    found = read_csv(tmp_path, "uri,label\na/007.png,0\nline.tar#008.png,1\ns3://b/9.png,1\n")
    assert found == {
        f"{tmp_path}/a/007.png": 0,
        f"{tmp_path}/line.tar#008.png": 1,
        "s3://b/9.png": 1,
    }


def test_a_uri_of_digits_stays_as_it_is_written_and_other_columns_do_not_matter(
    tmp_path: Path,
) -> None:
    content = '\ufeffnote,label,uri,,\n1,0,007,,\n"a\nb",1,8,,x\n'
    assert read_csv(tmp_path, content) == {f"{tmp_path}/007": 0, f"{tmp_path}/8": 1}


def test_duplicates_that_agree_count_once_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(f"uri,label,mask\na,0,\na,good,\n{tmp_path}/a,ok,\nb,1,m\n")
    found = read_labels(Location.parse(tmp_path / "l.csv"))
    assert (found.of, found.repeated) == ({f"{tmp_path}/a": 0, f"{tmp_path}/b": 1}, 2)
    assert found.masks


def test_contradictions_are_named_with_their_rows(tmp_path: Path) -> None:
    rows = ["/a,0", "/b,1", "/a,1", "/b,ok", *(f"/{n},{word}" for word in "01" for n in range(5))]
    with pytest.raises(DataError) as raised:
        read_csv(tmp_path, "\n".join(["uri,label", *rows]))
    message = str(raised.value)
    assert "/a (rows 1 and 3), /b (rows 2 and 4), /0 (rows 5 and 10)" in message
    assert "and 2 more." in message
    assert "Remove the wrong rows" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("uri,label\n/a,0\n/b,maybe\n", "row 2, /b: label 'maybe'. Expected one of 0, good, ok, "),
        ("uri,label\n/a,\n", "row 1, /a: label ''"),
        ("uri,label\n/a,2\n", "row 1, /a: label '2'"),
        ("uri,label\n/a,0\n,1\n", "row 2: no uri"),
        ("uri;label\n/a;0\n", "no columns 'uri'; found uri;label."),
        ("uri,verdict\n/a,0\n", "no columns 'label'; found uri, verdict."),
        ("uri,label,label\n/a,0,1\n", "2 columns 'label'"),
        ("uri,label\n", "no rows"),
        ("", "not a table that can be read"),
        ("uri,label\n/a,0,0\n", "not a table that can be read"),
        (b"uri,label\n/\xe4,0\n", "in UTF-8"),
        (b"uri,label,\xe4\n/a,0,1\n", "in UTF-8"),
    ],
)
def test_a_mistake_in_a_csv_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as raised:
        read_csv(tmp_path, content)
    assert message in str(raised.value)
    assert str(tmp_path / "labels.csv") in str(raised.value)


def test_a_mistake_in_a_parquet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2, /b: label ''. Expected"):
        read_parquet(tmp_path, uri=["/a", "/b"], label=[1, None])
    with pytest.raises(DataError, match=r"row 1, /a: label '0.5'"):
        read_parquet(tmp_path, uri=["/a"], label=[0.5])
    with pytest.raises(DataError, match="not a table that can be read"):
        read_parquet(tmp_path, uri=["/a"], label=[[1]])
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not a table that can be read"):
        read_labels(Location.parse(tmp_path / "labels.parquet"))


def test_only_a_table_that_is_there_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such table of labels"):
        read_labels(Location.parse(tmp_path / "none.csv"))
    for name in ("folder.csv", "labels.xlsx"):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=r"expected a \.csv or \.parquet file"):
            read_labels(Location.parse(tmp_path / name))
