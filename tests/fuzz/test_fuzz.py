"""A few mutated archives and images; ``make fuzz`` tries many."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.fuzz.harness import Input, fuzz


@pytest.mark.parametrize(("kind", "count"), [("archives", 250), ("images", 250)])
def test_mutated_input_is_read_or_refused(tmp_path: Path, kind: str, count: int) -> None:
    module = importlib.import_module(f"tests.fuzz.{kind}")
    inputs = module.inputs(0, count)
    report = fuzz(module.__name__, inputs, module.SECONDS, module.MEMORY_BYTES, tmp_path)
    assert report.outcomes.total() == count
    assert not report.failures, str(report)
    assert len(report.outcomes) > 3, "some are read, others refused for several reasons"


def test_harm_is_found_and_its_input_kept(tmp_path: Path) -> None:
    """By a function that does what an input says."""
    harm = [b"return", b"raise", b"hang", b"exit", b"allocate", b"return"]
    inputs = [Input("x.txt", each) for each in harm]
    report = fuzz("tests.fuzz.harmful", inputs, seconds=2.0, memory_bytes=2**28, keep=tmp_path)
    assert report.outcomes == {"returned": 2, "failure": 4}
    assert [(path.read_bytes(), why) for path, why in report.failures.items()] == [
        (b"raise", "KeyError: 'raised' (harmful.py:15)"),
        (b"hang", "more than 2.0 s"),
        (b"exit", "the process ended with 7"),
        (b"allocate", "MemoryError:  (harmful.py:21)"),
    ]
    assert report.worst_seconds >= 2.0
    assert sorted(tmp_path.iterdir()) == sorted(report.failures)
