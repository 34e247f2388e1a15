"""Which labels a version may have, in which order they come, and what somebody is told who wrote another one."""

import random

import pytest

from mmserver.errors import VersionInvalid
from mmserver.registry.semantic_versions import check_label, precedence

IN_ORDER = [
    "0.0.1",
    "0.9.0",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0+fp16",
    "1.0.0+int8",
    "1.0.0",
    "1.0.1",
    "1.9.0",
    "1.10.0",
    "2.0.0-0",
    "2.0.0",
    "10.0.0",
]


def test_labels_sort_as_semantic_versions_and_an_optimised_form_before_what_it_was_made_of() -> None:
    shuffled = list(IN_ORDER)
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled, key=precedence) == IN_ORDER


@pytest.mark.parametrize("label", IN_ORDER)
def test_a_semantic_version_is_taken(label: str) -> None:
    check_label(label)


@pytest.mark.parametrize(
    "label", ["latest", "production", "staging", "archived", "none", "Latest", "PRODUCTION", " none"]
)
def test_a_word_that_means_whichever_version_is_there_is_refused_and_the_message_says_what_to_do(label: str) -> None:
    with pytest.raises(VersionInvalid, match=r"register a number such as 1\.0\.0, then set its stage"):
        check_label(label)


@pytest.mark.parametrize(
    ("label", "instead"),
    [
        ("1.0", "1.0.0"),
        ("1", "1.0.0"),
        ("01.0.0", "1.0.0"),
        ("v1.2.3", "1.2.3"),
        ("V1.2", "1.2.0"),
        (" 1.0.0", "1.0.0"),
        ("1.0.0 ", "1.0.0"),
        ("1.0-rc.1", "1.0.0-rc.1"),
    ],
)
def test_what_is_nearly_a_semantic_version_is_refused_with_what_to_write_instead(label: str, instead: str) -> None:
    with pytest.raises(VersionInvalid) as caught:
        check_label(label)
    assert str(caught.value).endswith(f"write {instead}")
    check_label(instead)


@pytest.mark.parametrize(
    "label",
    [
        pytest.param("", id="nothing"),
        pytest.param("1.0.0\n", id="a line's end"),
        pytest.param("1.0.0/../x", id="a path"),
        pytest.param("1.0.0 beta", id="a blank"),
        pytest.param("1.0.0-01", id="a pre-release with a leading zero"),
        pytest.param("1.0.0+", id="empty build"),
        pytest.param("\u0661.0.0", id="another script's digit"),
        pytest.param("1.\u06f1.0", id="another script's second digit"),
        pytest.param("1.2.3.4", id="four numbers"),
        pytest.param("20261120_140322", id="a watched model's label"),
        pytest.param("1.0.0-" + "x" * 200, id="too long"),
        pytest.param("9" * 5000 + ".0.0", id="far too long"),
        pytest.param("\x00", id="nul"),
    ],
)
def test_anything_else_is_refused(label: str) -> None:
    with pytest.raises(VersionInvalid) as caught:
        check_label(label)
    assert len(str(caught.value)) < 600
