"""A folder of results that several runs may write to, at once or in turn: it is always of one run.

While a run works, everything lies in a place of its own. Once it is done it replaces what lies in
the folder by its own results, all of them, while others wait: of several runs the last one stays.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator

from pydantic import BaseModel

from ssray.errors import ConflictError
from ssray.storage.json_file import read_json
from ssray.storage.lease import Lease
from ssray.storage.location import Location

PARTS = "scored_parts"
"""Holds a folder for the last run and each that goes on, of what its scoring actors wrote."""
RESULTS = (
    "metrics.parquet",
    "metrics_by_type.parquet",
    "metrics.md",
    "scores.parquet",
    "report.html",
)
"""What a run may leave in the folder, beside pictures."""
_RUN_FILE = "_run.json"
_LEASE = "_replacing"

Write = Callable[[str, bytes], None]
"""Writes a file, given by its path inside the folder and its content."""


class _Run(BaseModel):
    """What ``scored_parts/_run.json`` says of the run whose results lie in the folder.

    Attributes:
        parts: the name of its folder in ``scored_parts``.
        files: the paths of its other files.
    """

    parts: str
    files: list[str]


class Outputs:
    """What one run writes to a folder.

    Attributes:
        out: the folder.
        parts: an empty folder of this run's own in it.
    """

    def __init__(self, out: Location) -> None:
        """Makes the run's own place.

        Raises:
            DataError: if it can't be made, or the earlier run's ``_run.json`` is damaged.
        """
        self.out = out
        self._name = secrets.token_hex(8)
        self._earlier()
        self.parts = out / PARTS / self._name
        self.parts.make_folder()

    @contextlib.contextmanager
    def scored(self) -> Iterator[None]:
        """Throws the run's parts away if scoring fails in the block."""
        try:
            yield
        except BaseException:
            self.parts.delete()
            raise

    @contextlib.contextmanager
    def replacing(self) -> Iterator[Write]:
        """Yields what writes this run's results, in place of the earlier run's; one run at a time.

        Tables and report of the earlier run are gone when the block begins, its pictures and parts
        when it ends.
        """
        written: list[str] = []

        def write(name: str, content: bytes) -> None:
            (self.out / name).write(content)
            written.append(name)

        with _alone(self.out / PARTS / _LEASE):
            before = self._earlier()
            for name in RESULTS:
                (self.out / name).delete()
            yield write
            run = _Run(parts=self._name, files=written)
            (self.out / PARTS / _RUN_FILE).write(run.model_dump_json(indent=1).encode())
            if before:
                for name in {*before.files} - {*written}:
                    (self.out / name).delete()
                (self.out / PARTS / before.parts).delete()

    def _earlier(self) -> _Run | None:
        """The run whose results lie in the folder."""
        remedy = f"Delete {self.out / PARTS}, or choose another folder."
        return read_json(self.out / PARTS / _RUN_FILE, _Run, remedy)


@contextlib.contextmanager
def _alone(place: Location) -> Iterator[None]:
    """Waits until no other run replaces the results, then keeps others out."""
    with contextlib.ExitStack() as held:
        while True:
            with contextlib.suppress(ConflictError):
                held.enter_context(Lease(place, f"writing to {place}"))
                break
        yield
