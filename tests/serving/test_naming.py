"""Names of single predictors: which part is the model and which the symbol, when both may hold dots."""

import pytest

from mmserver.errors import ModelNotFound
from mmserver.serving.naming import split_name

MODELS = ("alpha", "alpha.v2", "alpha.BTC", "b.c.d", "x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpha", ("alpha", None)),
        ("alpha.ETHUSDT", ("alpha", "ETHUSDT")),
        ("alpha.v2", ("alpha.v2", None)),
        ("alpha.v2.ETHUSDT", ("alpha.v2", "ETHUSDT")),
        ("alpha.v3.ETHUSDT", ("alpha", "v3.ETHUSDT")),
        ("alpha.BTC", ("alpha.BTC", None)),
        ("alpha.BRK.B", ("alpha", "BRK.B")),
        ("alpha..X", ("alpha", ".X")),
        ("b.c.d.E", ("b.c.d", "E")),
        ("x.*", ("x", "*")),
    ],
)
def test_the_longest_model_name_wins(name: str, expected: tuple[str, str | None]) -> None:
    assert split_name(MODELS, name) == expected


@pytest.mark.parametrize(
    "name", ["", ".", "alph", "alpha.", "alphaX", "b.c", "b.c.E", ".alpha", "x.", "X.*", "alpha/BTC"]
)
def test_a_name_that_begins_with_no_model_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFound):
        split_name(MODELS, name)
