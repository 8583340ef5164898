"""Packs what ssray needs for a machine with torch and CUDA that reaches no package index.

    python benchmarks/gpu_pack.py OUT [--python 3.12]

writes ``OUT/site-core.tar.xz``, enough to train and score, and ``OUT/site-ray.tar.xz``, Ray and all
it needs. There: ``tar -xJf`` both into one folder, and name it in ``PYTHONPATH``.

Versions are those of the environment that runs this. Left out are packages that such a machine
brings with torch (``BROUGHT``), and of the wheels what no step of ``gpu_check.py`` touches: tests,
headers, stubs, parts of Arrow and Ray, and the descriptions of AWS services other than S3 and those
that log in. OpenVINO, Optuna and ONNX are left out as well: neither scoring on a GPU nor training
needs them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PARTS = {
    "core": ["pydantic", "boto3", "click", "pyvips", "kornia", "scikit-learn"],
    "ray": ["ray", "tensorboardx", "jsonschema", "msgpack"],
}
"""The packages of each part; what they need comes along."""
BINARY = ["pyvips-binary"]
"""Wheels that hold what a package of the core loads by another name."""
BROUGHT = {
    *("torch", "numpy", "scipy", "pyarrow", "pandas", "pillow", "safetensors", "jinja2"),
    *("markupsafe", "rich", "requests", "urllib3", "certifi", "idna", "charset-normalizer"),
    *("packaging", "protobuf", "pyyaml", "filelock", "typing-extensions", "attrs", "six"),
    *("python-dateutil", "fsspec", "grpcio", "aiohttp", "click"),
}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35, 39)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64", "any"]
NOT_NEEDED = re.compile(
    r"(^|/)(tests?|include|__pycache__)/"
    r"|\.(a|pyx|pxd|h|hpp|jar|pyi)$"
    r"|^pyarrow/(lib(arrow_flight|gandiva)|_flight|src/)"
    r"|^ray/(rllib|serve|jars|cpp|llm|dashboard/client/build)(/|$)"
    r"|^ray/core/src/ray/cpp"
    r"|^ray/core/generated/.*_java"
)
AWS_SERVICE = re.compile(r"^botocore/data/([^/]+)/")
AWS_NEEDED = {"s3", "sts", "sso", "sso-oidc"}
_PLACED_ELSEWHERE = re.compile(r"^[^/]+\.data/(purelib|platlib)/")


def main() -> None:
    """Writes an archive a part, and says how large each is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", default="3.12", help="that the machine has")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    packed: set[str] = set()
    for part, names in PARTS.items():
        wanted = closure(names) - packed
        packed |= wanted
        wanted |= {*BINARY} if part == "core" else set()
        with tempfile.TemporaryDirectory() as folder:
            site = Path(folder) / "site"
            site.mkdir()
            missing = [name for name in sorted(wanted) if not add(name, site, options.python)]
            archive = options.out / f"site-{part}.tar.xz"
            with tarfile.open(archive, "w:xz", preset=6) as tar:
                tar.add(site, ".")
        size = archive.stat().st_size / 2**20
        print(f"{archive}: {size:.1f} MiB" + (f", not found: {missing}" if missing else ""))


def closure(names: list[str]) -> set[str]:
    """Packages and all they need, but for what the machine brings."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found or (name in BROUGHT and name not in names):
            continue
        found.add(name)
        waiting += needs(name)
    return found


def needs(name: str) -> Iterator[str]:
    """What a package of this environment requires without extras."""
    for line in importlib.metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def add(name: str, site: Path, python: str) -> bool:
    """Unpacks a package's wheel for the machine; a pure one without a wheel is copied from here."""
    version = importlib.metadata.version(name)
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        ended = subprocess.run([*command, f"{name}=={version}"], capture_output=True, check=False)
        found = [*Path(wheels).glob("*.whl")]
        if ended.returncode == 0 and found:
            unpack(found[0], site)
            return True
    return copied(name, site)


def unpack(wheel: Path, site: Path) -> None:
    """Unpacks what is needed of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            service = AWS_SERVICE.match(info.filename)
            if info.is_dir() or NOT_NEEDED.search(info.filename):
                continue
            if service and service[1] not in AWS_NEEDED:
                continue
            place = site / _PLACED_ELSEWHERE.sub("", info.filename)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.read(info))
            place.chmod(info.external_attr >> 16 & 0o777 or 0o644)


def copied(name: str, site: Path) -> bool:
    """Copies a package that has no wheel, if it is Python alone."""
    files = importlib.metadata.files(name) or []
    if any(file.suffix == ".so" for file in files):
        return False
    for file in files:
        if file.suffix == ".pyc" or ".." in file.parts:
            continue
        place = site / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), place)
    return bool(files)


if __name__ == "__main__":
    main()
