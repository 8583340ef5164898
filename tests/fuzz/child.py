"""The child process: runs a module's ``read`` on the files that are named on standard input.

For each it writes a line of JSON: what came out or went wrong, the seconds, and the bytes of memory
above what was held at the start.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path


def status(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def main() -> None:
    module, memory_bytes = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    read = importlib.import_module(module).read
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # what libraries print is no answer
    os.dup2(quiet, 2)
    limit = status("VmSize") + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    at_start = status("VmRSS")
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
        begun = time.perf_counter()
        try:
            answer = {"outcome": read(Path(line.rstrip("\n")))}
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            answer = {"outcome": "failure", "failure": f"{type(error).__name__}: {error} ({where})"}
        answer |= {
            "seconds": time.perf_counter() - begun,
            "bytes": max(0, status("VmHWM") - at_start),
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
