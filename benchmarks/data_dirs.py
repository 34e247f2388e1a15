"""Data directories with models in them, ready to be served."""

from collections.abc import Mapping
from pathlib import Path

from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.catalog.registering import register_model
from mmserver.settings import Settings


def make_data_dir(data_dir: Path, artifacts: Mapping[str, Path], plugins_dir: Path | None = None) -> None:
    """Register each of these directories as the model of that name."""
    with open_store(Settings(data_dir=data_dir, plugins_dir=plugins_dir)) as store:
        for name, directory in artifacts.items():
            register_model(store, name, str(directory.absolute()), Actor("benchmarks", None))
