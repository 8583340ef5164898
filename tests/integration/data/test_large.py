"""The memory that decoding a large image takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import large_png


@pytest.mark.slow
def test_memory_of_a_large_image(tmp_path: Path) -> None:
    """20,000 x 20,000 pixels, 1.2 GB, in less than 150 MB more than a small one takes."""
    place = tmp_path / "large.png"
    place.write_bytes(large_png(20_000))
    program = (
        "import resource, sys; from pathlib import Path; from ssray.data.large import decode_large;"
        "content = Path(sys.argv[1]).read_bytes();"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = peak(); large = decode_large(content, lambda _: (256, 256));"
        "assert large.shape == (20000, 20000); print(peak() - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(place)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 150 * 1024, f"{int(ran.stdout) / 1024:.0f} MiB"
