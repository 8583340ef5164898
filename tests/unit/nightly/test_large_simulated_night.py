"""A million images that nobody has, scored by no model, killed at twenty random points."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ssray.nightly import plan, protocol
from ssray.nightly.batch import BatchResult
from ssray.nightly.preparing import Spent
from ssray.nightly.rows import NIGHT
from ssray.nightly.sources import Source
from ssray.nightly.table import ScoreTable
from ssray.storage.location import Location
from tests.unit.nightly.test_night import DATE, Killed, Plant, Worker, without_lease

CATEGORIES, KILLS = 20, 20


class Quick(Worker):
    """Rows without a score, as quickly as they can be made."""

    def result(self, sources: Sequence[Source], give_up: bool) -> BatchResult:
        self.plant.scored.update({"images": len(sources)})
        columns = {
            "uri": [source.uri for source in sources],
            "category": [source.category for source in sources],
            "etag": [source.etag for source in sources],
        }
        rows = pa.table(
            [columns.get(field.name, pa.nulls(len(sources), field.type)) for field in NIGHT],
            schema=NIGHT,
        )
        return BatchResult(rows, Spent(), 0)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("count", [int(os.environ.get("IMAGES", "1_000_000"))])
def test_each_of_a_million_rows_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    def find(*_: Any) -> Iterator[Source]:
        for number in range(count):
            category = f"c{number * CATEGORIES // count}"
            uri = f"s3://prod/2026-11-21/{category}/{number:09}.png"
            yield Source(uri, category, 50_000, etag=f'"{number:032x}"')

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def killing(work: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            step()
            return work(*arguments, **options)

        return wrapped

    left = [0]
    plant, generator = Plant(tmp_path), random.Random(0)
    names = [f"c{number}" for number in range(CATEGORIES)]
    monkeypatch.setattr(protocol, "published", lambda store: dict.fromkeys(names, "v1"))
    monkeypatch.setattr(plan, "find", find)
    monkeypatch.setattr(protocol, "Lease", without_lease)

    @contextlib.contextmanager
    def stages(places: Any, run: Any) -> Iterator[Quick]:
        yield Quick(plant, places)

    monkeypatch.setattr(plant, "stages", stages)
    begun = time.process_time()
    for owner, name in ((Location, "write"), (Location, "delete"), (ScoreTable, "commit")):
        monkeypatch.setattr(owner, name, killing(getattr(owner, name)))
    batches = count // 256
    for _ in range(KILLS):
        left[0] = generator.randint(1, batches // KILLS + 100)
        with contextlib.suppress(Killed):
            plant.night(batch=256)
    left[0] = 0
    outcome = plant.night(batch=256)
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{count:,} images, {plant.scored['images']:,} scored, {seconds:.0f} s of CPU, "
        f"{1e6 * seconds / count:.0f} us an image, peak {peak:.0f} MiB"
    )
    assert outcome.images == count
    uris = ScoreTable(Location.parse(tmp_path / "out")).night(DATE, ["uri"])["uri"]
    assert len(uris.unique()) == len(uris) == count
    assert not plant.night(batch=256).new
    assert plant.scored["images"] <= count + (KILLS + 1) * 256 * 5
