"""Images that kill the process they are decoded in, found and left out.

Nobody writes down that he was killed, so what is begun is noted, and the note taken away when it is
done. A batch that was begun too often without an end is scored image by image; an image that stays
noted twice is taken for what kills, and gets its reason code.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence

import pyarrow as pa

from ssray.nightly.batch import BatchResult, Spent
from ssray.nightly.sources import Source
from ssray.storage.fetch import persistently
from ssray.storage.location import Location

MOST_DEATHS = 3
"""Of a batch, before its images are scored one by one. Nodes are lost for other reasons, too."""
STRIKES = 2
"""Times that an image was under way at the end of a process, before it counts as the reason."""


def quarantined(
    score: Callable[[Sequence[Source]], BatchResult], sources: Sequence[Source], notes: Location
) -> BatchResult:
    """Scores a batch that may kill this process.

    Args:
        score: scores images.
        sources: of the batch.
        notes: a folder for this batch, which outlives the process.
    """
    if _begun(notes / "batch") < MOST_DEATHS:
        return score(sources)
    results = []
    for number, source in enumerate(sources):
        note = notes / f"{number:06}"
        if _begun(note) >= STRIKES:
            results.append(score([dataclasses.replace(source, error="crashed")]))
        else:
            results.append(score([source]))
            persistently(note.delete)
    return _joined(results)


def _begun(note: Location) -> int:
    """Notes that something is begun; how often it was before without an end."""
    before, mine = len(persistently(note.children)), note / secrets.token_hex(8)
    persistently(lambda: mine.write(b""))
    return before


def _joined(results: Sequence[BatchResult]) -> BatchResult:
    spent = Spent()
    for result in results:
        for stage, seconds in result.spent.seconds.items():
            spent.seconds[stage] += seconds
    rows = pa.concat_tables([result.rows for result in results])
    return BatchResult(rows, spent, sum(result.retries for result in results))
