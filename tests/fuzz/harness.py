"""Runs a function on many inputs in a child process, and finds those that do harm.

Harm is a crash, an exception that the function should not raise, more than so many seconds, or
more memory than the address space has room for.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_SECONDS = 300
"""How long the child may take to import what it needs."""


@dataclass(frozen=True)
class Input:
    """What is given to the function.

    Attributes:
        name: the name of the file, from which the function may tell what it is.
        content: what is in it.
    """

    name: str
    content: bytes


@dataclass
class Report:
    """What happened to the inputs.

    Attributes:
        outcomes: how often the function returned what, over all inputs.
        failures: the files of the inputs that did harm, with what they did.
        worst_seconds: the longest time that an input took.
        worst_input: the number of that input.
        worst_bytes: the most memory that the child held above what it held at the start.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[Path, str] = field(default_factory=dict)
    worst_seconds: float = 0.0
    worst_input: int = 0
    worst_bytes: int = 0

    def __str__(self) -> str:
        lines = [
            f"{self.outcomes.total()} inputs, {len(self.failures)} failures; at most "
            f"{self.worst_seconds:.2f} s (input {self.worst_input}) and "
            f"{self.worst_bytes / 2**20:.0f} MiB",
            ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common()),
            *(f"{path}: {why}" for path, why in self.failures.items()),
        ]
        return "\n".join(lines)


class _Child:
    """A process that runs the function on one input after the other."""

    def __init__(self, module: str, memory_bytes: int) -> None:
        command = [sys.executable, "-m", "tests.fuzz.child", module, str(memory_bytes)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        if "ready" not in self._answer(START_SECONDS):
            raise RuntimeError(f"{module}: the child did not start")

    def __call__(self, place: Path, seconds: float) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(f"{place}\n".encode())
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        if ready:
            return {"failure": f"the process ended with {self._process.wait()}"}
        return {"failure": f"more than {seconds} s", "seconds": seconds}

    def end(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.communicate()


def fuzz(
    module: str, inputs: Iterable[Input], seconds: float, memory_bytes: int, keep: Path
) -> Report:
    """Runs a module's ``read`` on inputs.

    Args:
        module: the name of the module. Its ``read(place)`` returns what came out in a word, and
            raises only if something is wrong.
        inputs: what it is run on.
        seconds: how long it may take for one.
        memory_bytes: how much address space it may take above what the imports took.
        keep: a folder for the inputs that did harm.
    """
    report = Report()
    child: _Child | None = None
    keep.mkdir(parents=True, exist_ok=True)
    try:
        for number, each in enumerate(inputs):
            place = keep / f"{number:06}-{each.name}"
            place.write_bytes(each.content)
            child = child or _Child(module, memory_bytes)
            answer = child(place, seconds)
            if answer.get("seconds", 0.0) > report.worst_seconds:
                report.worst_seconds, report.worst_input = answer["seconds"], number
            report.worst_bytes = max(report.worst_bytes, answer.get("bytes", 0))
            report.outcomes[answer.get("outcome", "failure")] += 1
            if "failure" in answer:
                report.failures[place] = answer["failure"]
                if "outcome" not in answer:
                    child.end()
                    child = None
            else:
                place.unlink()
    finally:
        if child:
            child.end()
    return report
