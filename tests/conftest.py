"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, or to think of it, says something of the machine only.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def shared_artifacts() -> Path:
    """The directory of real artifact directories; tests that need it are skipped where it is absent."""
    root = os.environ.get("MMSERVER_TEST_SHARED")
    shared = Path(root) if root else Path(__file__).resolve().parents[1].parent / "shared"
    if not (shared / "artifacts").is_dir():
        pytest.skip("the shared real artifacts are not here (set MMSERVER_TEST_SHARED)")
    return shared / "artifacts"
