"""Does the GPU give what the CPU gives, and is it kept busy? Prepared for ten minutes of one.

    python benchmarks/gpu_check.py --out gpu.json                 # or: make gpu-check
    python benchmarks/gpu_check.py --dry-run --out dry.json       # the same without a GPU

Each step below is a process of its own with a time limit; quick and telling ones come first. A row
is printed as soon as it is measured, and the JSON file is written anew after each step, so that
whatever ends the check leaves what it found. A step that fails or is too slow is a row as well.

With ``--data ROOT``, a folder with grid, transistor and screw of MVTec AD, recipes ``paper`` are
trained on them in the time that is left (``--minutes``).

``--dry-run`` runs every step on the CPU with small sizes, and Ray with a GPU that it only pretends
to have: it tells whether the check itself works, on a machine that has nothing but torch and what
``benchmarks/gpu_pack.py`` packs. Its figures mean nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Step:
    """A part of the check.

    Attributes:
        name: of the function in ``module``.
        seconds: after which it is ended.
        module: where it is.
    """

    name: str
    seconds: float
    module: str = "gpu_steps"

    @property
    def with_ray(self) -> bool:
        """Whether it is of the second part."""
        return self.module == "gpu_ray_steps"


STEPS = (
    Step("machine", 90),
    Step("corruption_equals_the_cpus", 40),
    Step("a_step_equals_the_cpus", 40),
    Step("bare_steps", 60),
    Step("training_against_bare_steps", 100),
    Step("scoring_against_bare_passes", 60),
    Step("maps_equal_the_cpus", 40),
    Step("process_group", 30, "gpu_ray_steps"),
    Step("night", 100, "gpu_ray_steps"),
    Step("trainings_on_one_card", 110, "gpu_ray_steps"),
    Step("evaluation", 50, "gpu_ray_steps"),
    Step("two_cards", 70, "gpu_ray_steps"),
    Step("trained_quality_equals_the_cpus", 90),
    Step("export", 40),
    Step("cpu_cores", 100, "gpu_ray_steps"),
    Step("variants_of_the_step", 120),
)
ACCURACY = Step("accuracy", 600, "gpu_ray_steps")


def main() -> int:
    """Returns how many rows missed their target or failed."""
    options = parsed()
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    for step in chosen(options):
        left = 60 * options.minutes - (time.monotonic() - began)
        if left < 5:
            add(rows, options, step.name, {"what": "no time left", "failed": True})
            continue
        limit = min(left, step.seconds * options.patience)
        for row in run(step, limit, options):
            add(rows, options, step.name, row)
    misses = [row for row in rows if row.get("failed") or row.get("holds") is False]
    print(f"{len(rows)} rows, {len(misses)} missed or failed", flush=True)
    for row in misses:
        print(f"  {text_of(row)}".partition("\n")[0])
    return len(misses)


def parsed() -> argparse.Namespace:
    """What the user asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the table, as JSON")
    parser.add_argument("--minutes", type=float, default=9, help="for all steps together")
    parser.add_argument("--patience", type=float, default=1, help="factor on each step's limit")
    parser.add_argument("--part", choices=["core", "ray", "all"], default="all")
    parser.add_argument("--only", action="append", metavar="STEP", help="repeatable")
    parser.add_argument("--data", help="folder with categories of MVTec AD")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with small sizes")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # what a process of its own is told
    options = parser.parse_args()
    if options.step:
        perform(options)
        sys.exit()
    known = [step.name for step in (*STEPS, ACCURACY)]
    if unknown := set(options.only or []) - {*known}:
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


def chosen(options: argparse.Namespace) -> Iterator[Step]:
    """The steps to run."""
    for step in (*STEPS, *([ACCURACY] if options.data else [])):
        part = options.part == "all" or step.with_ray == (options.part == "ray")
        if part and (not options.only or step.name in options.only):
            yield step


def run(step: Step, limit: float, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a step, as its process prints them; and one that says so where it went wrong."""
    command = [sys.executable, __file__, "--step", f"{step.module}.{step.name}"]
    command += ["--minutes", f"{limit / 60:.2f}"]
    command += ["--dry-run"] if options.dry_run else []
    command += ["--data", options.data] if options.data else []
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        late = threading.Timer(limit, _end, [process])
        late.start()
        said: list[str] = []
        assert process.stdout is not None and process.stderr is not None
        errors = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        errors.start()
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # other libraries print as well
                found = json.loads(line)
                if isinstance(found, dict) and "what" in found:
                    yield found
        code = process.wait()
        late.cancel()
        _end(process)  # whatever it left running
        errors.join(5)
    seconds = time.monotonic() - began
    yield {"what": "seconds in all", "value": round(seconds, 1), "unit": "s"}
    if code:
        reason = (
            f"ended after its {limit:.0f} s"
            if seconds >= limit
            else "".join(said).strip().rpartition("\n")[2] or f"exit code {code}"
        )
        yield {"what": reason, "failed": True, "traceback": "".join(said[-20:])}


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a step's process and all that it started, which are a session of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def add(
    rows: list[dict[str, Any]], options: argparse.Namespace, step: str, row: dict[str, Any]
) -> None:
    """Shows a row, and writes all there are."""
    rows.append({"step": step} | row)
    print(text_of(rows[-1]), flush=True)
    table = {"dry_run": options.dry_run, "rows": rows}
    options.out.write_text(json.dumps(table, indent=1) + "\n")


def text_of(row: dict[str, Any]) -> str:
    """A row as a line."""
    value = row.get("value", "")
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    line = f"{row['step']:32} {row['what']}: {shown} {row.get('unit', '')}".rstrip()
    if "target" in row:
        line += f"  (target {row['target']}: {'holds' if row['holds'] else 'MISSED'})"
    return f"{line}  FAILED\n{row.get('traceback', '')}".rstrip() if row.get("failed") else line


def perform(options: argparse.Namespace) -> None:
    """Runs one step in this process."""
    module, name = options.step.split(".")
    sys.path.insert(0, str(HERE))
    setup_module = __import__("gpu_steps")
    setup = setup_module.Setup.of(options.dry_run, options.minutes, options.data)
    getattr(__import__(module), name)(setup)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
