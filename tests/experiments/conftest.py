"""The checked cases of statistics, where they are."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Case = dict[str, Any]


@pytest.fixture(scope="session")
def case() -> Callable[[str], Case]:
    """One checked case by its name: inputs, expected, tolerance; skipped where the shared folder is absent."""
    root = os.environ.get("MMSERVER_TEST_SHARED")
    shared = Path(root) if root else Path(__file__).resolve().parents[2].parent / "shared"
    path = shared / "notes" / "stats_vectors.json"
    if not path.is_file():
        pytest.skip("the checked cases of statistics are not here (set MMSERVER_TEST_SHARED)")
    cases = {found["name"]: found for found in json.loads(path.read_text(encoding="utf-8"))}
    return lambda name: cases[name]
