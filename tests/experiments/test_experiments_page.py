"""docs/experiments.md says what the program does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmserver.experiments.assignment import TimeBlocks, arm_of, salt_of, unit_of
from mmserver.experiments.policies import ClassicPolicy, SequentialPolicy

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "experiments.md").read_text()


@pytest.fixture
def shown() -> dict[str, Callable[..., Any]]:
    """The functions of the page by which a client assigns as the server does."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "def arm_of" in block]
    names: dict[str, Any] = {}
    exec(block, names)
    return names


def test_a_client_that_copies_the_page_assigns_as_the_server_does(shown: dict[str, Callable[..., Any]]) -> None:
    blocks = TimeBlocks(3600.0)
    for number in range(3_000):
        epoch_s = 1_767_600_000.0 + 977.3 * number
        unit = unit_of("symbol|time-block", symbol="BTC/USDT", epoch_s=epoch_s, blocks=blocks)
        assert shown["unit_of"]("BTC/USDT", epoch_s) == unit
        for weight in (0.0, 0.07, 1.0 - 0.9, 0.5, 1.0):
            ours = arm_of(salt=salt_of("v2-live", 1), unit=unit, treatment_weight=weight)
            assert shown["arm_of"]("v2-live:1", unit, weight) == ours


def test_the_snippet_is_short_enough_to_copy() -> None:
    [block] = re.findall(r"^```python\n(.*?)^unit = ", PAGE, re.MULTILINE | re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 20


def test_the_page_names_every_number_with_its_default() -> None:
    section = PAGE.split("### The numbers\n", 1)[1].split("\n## ", 1)[0]
    described: dict[str, tuple[str, str]] = {}
    for first, defaults, policy in re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", section, re.MULTILINE):
        names = re.findall(r"`(\w+)`", first)
        values = defaults.split(", ") if len(names) > 1 and ", " in defaults else [defaults] * len(names)
        described |= {name: (value, policy) for name, value in zip(names, values, strict=True)}
    both, sequential = ClassicPolicy(), SequentialPolicy()
    assert sorted(described) == sorted(sequential.__struct_fields__)
    for name, (value, policy) in described.items():
        assert policy == ("both" if name in both.__struct_fields__ else "`sequential`")
        default = getattr(sequential, name)
        assert value == ("none" if default is None else f"{default:g}")
        assert getattr(both, name, default) == default
