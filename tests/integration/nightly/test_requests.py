"""How many requests to S3 a night makes beside those for the images."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from ssray.nightly.batch import BatchResult
from ssray.nightly.plan import read_batch, write_manifest
from ssray.nightly.preparing import Spent
from ssray.nightly.quarantine import quarantined
from ssray.nightly.rows import NIGHT
from ssray.nightly.run import Places, list_parts, write_part
from ssray.nightly.sources import CategoryRule
from ssray.nightly.table import ScoreTable
from ssray.storage.fetch import Fetcher
from ssray.storage.location import Location
from tests.integration.cluster.faulty_proxy import between

IMAGES, BATCH = 24, 4


def test_a_batch_takes_four_requests_and_an_image_one(
    s3_server: str,
) -> None:
    place = Location.parse(f"s3://{s3_server}/requests")
    for number in range(IMAGES):
        (place / f"images/c/{number:02}.png").write(b"image")
    with between() as traffic:
        place = Location.parse(f"s3://{s3_server}/requests")
        places = Places(place / "out", "2026-11-21", "run")

        def made() -> Counter[str]:
            found = Counter(traffic.requests)
            traffic.requests.clear()
            return found

        manifest = write_manifest(places.manifest, [place / "images"], CategoryRule(), BATCH)
        assert made().total() <= 8, "whatever the number of images, up to a page of them"
        parts, counted = [], Counter[str]()
        for number, planned in enumerate(manifest.batches):
            sources = read_batch(places.manifest, number, planned)
            assert made() == {"GET": 1}
            for source in sources:
                Fetcher()(source.uri, source.size, source.offset, source.etag)
            assert made() == {"GET": BATCH}
            rows = [{"uri": source.uri, "category": "c", "score": 1.0} for source in sources]
            table = pa.Table.from_pylist(rows, schema=NIGHT)
            result = BatchResult(table, Spent(), 0)
            quarantined(len, sources, places.notes / f"{number}")
            parts.append(write_part(places, number, "c", (), result, "cpu"))
            counted += made()
        assert counted.total() <= 3 * len(manifest.batches), counted
        ScoreTable(places.out).commit(
            places.date, 1, "run", "append", [part.file() for part in parts]
        )
        assert made().total() <= 40, "of the table, whatever the number of batches"
        assert ScoreTable(places.out).count(places.date) == IMAGES
        made()
        assert list_parts(places) == parts
        assert made().total() <= 2 * len(parts) + 2, "of a run that goes on"
