import pytest

from mmserver.watching.names import ArtifactNames, displayed, is_ignored, name_fault

NAMES = ArtifactNames(["_model.pkl", "_info.pkl", ".json", "_model.json"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SOLUSDT_mid_chg_1m_model.pkl", ("SOLUSDT_mid_chg_1m", "_model.pkl")),
        ("A_model.json", ("A", "_model.json")),
        ("A.json", ("A", ".json")),
        ("_model.pkl", ("", "_model.pkl")),
        ("A_model.pkl.tmp", None),
        (".A_model.pkl", None),
        ("readme.md", None),
    ],
)
def test_the_longest_suffix_says_what_precedes_it(name, expected):
    assert NAMES.split(name) == expected


@pytest.mark.parametrize("name", [".x", "x.tmp", "x.part", "x~"])
def test_names_of_files_under_way_are_ignored(name):
    assert is_ignored(name)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("", id="empty"),
        pytest.param("a\nb", id="newline"),
        pytest.param("a\x00b", id="nul"),
        pytest.param("a\x1bb", id="escape"),
        pytest.param("a\u202eb", id="right-to-left override"),
        pytest.param("a\u200bb", id="zero width"),
        pytest.param("a\u2028b", id="line separator"),
        pytest.param("a\udcffb", id="not UTF-8"),
        pytest.param("x" * 201, id="too long"),
    ],
)
def test_a_group_key_that_cannot_be_shown_has_a_fault(key):
    assert name_fault(key)


@pytest.mark.parametrize("key", ["BTC-USDT_ret 1d", "日経225_ret", "x" * 200])
def test_an_ordinary_group_key_has_none(key):
    assert name_fault(key) is None


def test_what_is_displayed_is_printable_and_tells_names_apart():
    hostile = ["a\nb", "a\u202eb", "a\udcffb", "a\U000e0001b"]
    shown = [displayed(name) for name in hostile]
    assert shown == ["a\\x0ab", "a\\u202eb", "a\\xffb", "a\\U000e0001b"]
    assert all(text.isprintable() for text in shown)
