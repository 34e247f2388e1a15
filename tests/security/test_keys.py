"""The text of keys."""

import re

import pytest

from mmserver.errors import KeyMalformed
from mmserver.security.keys import generate_key, has_key, is_secret_of, parts_from_key, without_keys


def test_a_key_is_one_word_that_says_its_id_and_its_secret() -> None:
    new = generate_key()
    assert re.fullmatch(r"mm_[a-z2-9]{10}_[A-Za-z0-9_-]{43}_[0-9a-f]{8}", new.text)
    parts = parts_from_key(new.text)
    assert parts.key_id == new.key_id
    assert is_secret_of(parts.secret, new.sha256)
    assert parts.secret not in new.sha256


def test_no_two_keys_are_alike() -> None:
    made = [generate_key() for _ in range(200)]
    assert len({new.key_id for new in made}) == len({new.sha256 for new in made}) == 200


def test_every_mistyped_character_is_noticed_without_looking_the_key_up() -> None:
    text = generate_key().text
    for place, character in enumerate(text):
        with pytest.raises(KeyMalformed):
            parts_from_key(text[:place] + ("a" if character != "a" else "b") + text[place + 1 :])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: "", id="nothing"),
        pytest.param(lambda text: text[:-1], id="cut off"),
        pytest.param(lambda text: text + "\n", id="a line end"),
        pytest.param(lambda text: " " + text, id="a space before"),
        pytest.param(lambda text: text.upper(), id="upper case"),
        pytest.param(lambda text: text * 1000, id="very long"),
        pytest.param(lambda text: "mm_\x00_\ud800_ü", id="not ASCII"),
    ],
)
def test_what_is_no_key_is_refused_as_such(damage: object) -> None:
    with pytest.raises(KeyMalformed) as refused:
        parts_from_key(damage(generate_key().text))  # type: ignore[operator]
    assert refused.value.values == {}


def test_nobodys_secret_fits_an_unknown_id() -> None:
    assert not is_secret_of("", None)
    assert not is_secret_of(parts_from_key(generate_key().text).secret, None)
    assert not is_secret_of("other", generate_key().sha256)


def test_secrets_are_taken_out_of_texts_and_the_id_stays() -> None:
    new = generate_key()
    secret = parts_from_key(new.text).secret
    line = f"GET /models?api_key={new.text}&x=1 {new.text[:30]}"
    assert has_key(line)
    told = without_keys(line)
    assert secret not in told
    assert secret[:8] not in told
    assert new.key_id in told
    assert told.endswith("[redacted]")
    assert without_keys("mm_hello and comm_unity") == "mm_hello and comm_unity"
