"""One reader of registered models for all tests, with a plugin of formats that misbehave."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmserver.catalog.ingest import IngestedGroup
from mmserver.conversion.reading import ModelReader
from mmserver.formats import ModelSource
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.settings import Settings

Read = Callable[..., IngestedGroup]


@pytest.fixture(scope="session")
def plugins_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("odd")
    shutil.copy(Path(__file__).with_name("odd_formats.py"), directory)
    return directory


@pytest.fixture(scope="session")
def plugins(plugins_dir: Path) -> Plugins:
    return load_plugins(plugins_dir)


@pytest.fixture(scope="session")
def settings(plugins_dir: Path) -> Settings:
    return Settings(plugins_dir=plugins_dir, conversion_timeout_s=120.0, conversion_memory_bytes=2 << 30)


@pytest.fixture(scope="session")
def reader(settings: Settings, plugins: Plugins) -> Iterator[ModelReader]:
    opened = ModelReader(settings, plugins)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def read(reader: ModelReader, plugins: Plugins) -> Read:
    """Hand in one file; keywords are options, `factors`, `info` and other `files`."""

    def run(name: str, data: bytes, *, by: ModelReader = reader, **said: Any) -> IngestedGroup:
        claim = plugins.model_format_for(name)
        assert claim is not None
        factors, info, files = said.pop("factors", None), said.pop("info", {}), said.pop("files", {})
        source = ModelSource(file_name=name, files={name: data, **files}, options=said)
        return by.read(source, claim, factors=factors, info=info)

    return run
