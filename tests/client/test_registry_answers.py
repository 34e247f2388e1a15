"""What a client reads of the registry's answers, also of those of a later server."""

import json
from typing import Any

import msgspec
import pytest

from mmserver.client.registry_answers import Comparison, Optimizations, RegisteredModels


@pytest.mark.parametrize(
    ("answer", "document"),
    [
        pytest.param(RegisteredModels, {"items": [], "next_cursor": None}, id="models"),
        pytest.param(Optimizations, {"items": []}, id="optimizations"),
        pytest.param(Comparison, {"model_name": "hybrid", "version1": "1.0.0", "version2": "1.1.0"}, id="comparison"),
    ],
)
def test_fields_of_a_later_server_are_left_out(answer: Any, document: dict[str, Any]) -> None:
    plain = msgspec.json.decode(json.dumps(document), type=answer)
    assert msgspec.json.decode(json.dumps({**document, "of_a_later_server": {"any": 1}}), type=answer) == plain
