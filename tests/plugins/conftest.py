"""Parsing one file through the plugin that claims it."""

from collections.abc import Callable
from typing import Any

import pytest

from mmserver.formats import Artifact
from mmserver.plugin_loading import Plugins, load_plugins


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture(scope="session")
def parse(plugins: Plugins) -> Callable[..., Any]:
    """What the plugin makes of a file of that name and those bytes."""

    def run(name: str, data: bytes, *, quantiles: bool = False) -> Any:
        claim = plugins.format_for(name, quantiles=quantiles)
        assert claim is not None
        return claim.parse(Artifact(name=name, group_key="", data=data))

    return run
