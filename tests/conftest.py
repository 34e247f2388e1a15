"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_artifacts() -> Path:
    """The directory of real artifact directories; tests that need it are skipped where it is absent."""
    root = os.environ.get("MMSERVER_TEST_SHARED")
    shared = Path(root) if root else Path(__file__).resolve().parents[1].parent / "shared"
    if not (shared / "artifacts").is_dir():
        pytest.skip("the shared real artifacts are not here (set MMSERVER_TEST_SHARED)")
    return shared / "artifacts"
