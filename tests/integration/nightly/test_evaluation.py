"""Labels in S3, and figures written there."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from ssray.nightly.evaluation import evaluate_nights
from ssray.storage.location import Location


def test_labels_in_s3_name_images_beside_them(s3_server: str, tmp_path: Path) -> None:
    folder = Location.parse(f"s3://{s3_server}/verdicts")
    (folder / "labels.csv").write(b"uri,label\n0.png,ok\n1.png,ng\n")
    rows = [
        {
            "uri": f"{folder}/{number}.png",
            "category": "nut",
            "date": date(2026, 11, 21),
            "model_version": "v1",
            "score": float(number),
            "p_value": 0.5,
            "flagged": True,
            "seen_by": "joined",
            "error": None,
        }
        for number in range(2)
    ]
    table = pa.Table.from_pylist(rows)
    typed = {"date": pa.date32(), "error": pa.string()}
    for name, kind in typed.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    write_deltalake(tmp_path / "scores", table, partition_by=["date", "category"])
    scores = Location.parse(tmp_path / "scores")
    found = evaluate_nights(scores, [], folder / "labels.csv", folder / "out")
    with (folder / "out" / "metrics.parquet").open_file() as file:
        assert pq.read_table(file).equals(found.metrics)
    assert found.metrics["image_auroc"].to_pylist() == [1.0, 1.0]
    assert found.metrics["false_alarms"].to_pylist() == [1.0, 1.0]
