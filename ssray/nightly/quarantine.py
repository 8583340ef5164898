"""Finds images that kill the process that decodes them, and leaves them out.

A process that is killed can't report it. So each beginning is noted in a file. A batch that was
begun ``MOST_DEATHS`` times without getting done is scored image by image; the notes of a batch, or
of an image, are deleted once it is scored. An image whose note was left behind ``STRIKES`` times is
taken for the one that kills, and gets the reason code ``crashed``.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

from ssray.nightly.sources import Source
from ssray.storage.fetch import persistently
from ssray.storage.location import Location

_Result = TypeVar("_Result")

MOST_DEATHS = 3
"""How often a batch is begun before its images are scored one by one.

Once is not enough, as machines are lost for other reasons, too.
"""
STRIKES = 2
"""How often a process must have ended while scoring an image for the image to be left out."""


def quarantined(
    work: Callable[[Sequence[Source]], _Result], sources: Sequence[Source], notes: Location
) -> list[_Result]:
    """Does some work on a batch, some image of which may kill this process.

    Args:
        work: on some images.
        sources: the images of the batch.
        notes: the folder of this batch's notes; it must outlive the process.

    Returns:
        The result; several, each of one image, of a batch that killed processes before.
    """
    if _begun(notes / "batch") < MOST_DEATHS:
        return [work(sources)]
    results = []
    for number, source in enumerate(sources):
        note = notes / f"{number:06}"
        if _begun(note) >= STRIKES:
            results.append(work([dataclasses.replace(source, error="crashed")]))
        else:
            results.append(work([source]))
            persistently(note.delete)
    return results


def _begun(note: Location) -> int:
    """Adds a note that something is begun; returns how many such notes there were before."""
    before, mine = len(persistently(note.children)), note / secrets.token_hex(8)
    persistently(lambda: mine.write(b""))
    return before
