"""Files on the server that a version is registered from."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmserver.errors import ArtifactUnstable
from mmserver.settings import Settings
from mmserver.web.registry_uploads import source_from_paths


@pytest.fixture
def closed_directory() -> Iterator[Path]:
    """A directory that nobody but root may look into, and this thread is not root."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "closed"
        made.mkdir()
        (made / "model.json").write_text("{}")
        made.parent.chmod(0o755)
        made.chmod(0)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield made
        finally:
            if was_root:
                os.seteuid(0)
            made.chmod(0o700)


def test_a_file_in_a_directory_that_may_not_be_read_is_named_with_its_path(closed_directory: Path) -> None:
    path = closed_directory / "model.json"
    with pytest.raises(ArtifactUnstable) as refused:
        source_from_paths((str(path),), Settings(data_dir=closed_directory.parent))
    assert str(refused.value) == f"{path}: unreadable: Permission denied"
