"""The peers' own virtual environments, with pinned versions; made on first use, under `$BENCH_DIR` or `.bench`."""

import json
import os
import subprocess
import sys
from pathlib import Path

XGBOOST = "xgboost-cpu==3.2.0"
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    # its workers do not start under uvloop 0.22: "There is no current event loop"
    "mlserver": ("mlserver==1.7.1", "mlserver-xgboost==1.7.1", "uvloop<0.22"),
    "bentoml": ("bentoml==1.4.39", XGBOOST, "numpy>=2"),
    "litserve": ("litserve==0.2.19", XGBOOST, "numpy>=2"),
    "mlflow": ("mlflow==3.17.2", XGBOOST),
    "fastapi": (
        "fastapi==0.165.0",
        "uvicorn[standard]==0.54.0",
        "orjson==3.13.0",
        XGBOOST,
        "msgspec>=0.19",
        "pluggy>=1.5",
    ),
}
MISSING = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
from pip._vendor.packaging.requirements import Requirement
found = []
for text in sys.argv[1:]:
    wanted = Requirement(text)
    try:
        if version(wanted.name) not in wanted.specifier:
            found.append(text)
    except PackageNotFoundError:
        found.append(text)
print(json.dumps(found))
"""


def directory() -> Path:
    """Where the environments are."""
    return Path(os.environ.get("BENCH_DIR") or Path(__file__).resolve().parents[1] / ".bench")


def python_of(name: str, *, may_install: bool) -> Path | None:
    """The interpreter of that environment, with everything in it; None where it is not there and may not be made."""
    python = directory() / name / "bin" / "python"
    if not python.exists():
        if not may_install:
            return None
        print(f"making {directory() / name}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", directory() / name], check=True)
    missing = _missing(python, REQUIREMENTS[name])
    if missing and not may_install:
        return None
    if missing:
        print(f"installing {', '.join(missing)} into {directory() / name}", file=sys.stderr, flush=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *missing]
        subprocess.run(command, check=True, timeout=1800)
    return python


def _missing(python: Path, requirements: tuple[str, ...]) -> list[str]:
    done = subprocess.run([str(python), "-c", MISSING, *requirements], check=True, capture_output=True, timeout=60)
    found: list[str] = json.loads(done.stdout)
    return found
