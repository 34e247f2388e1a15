"""Times as text sort as times, and only times with an offset are times."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from mmserver.storage.times import datetime_from_text, text_from_datetime


def test_texts_are_of_one_width_and_sort_like_the_times() -> None:
    base = datetime(2026, 11, 20, 23, 59, 59, 999_999, tzinfo=UTC)
    moments = [base + timedelta(microseconds=step) for step in (-1_000_000, -1, 0, 1, 86_400_000_000)]
    texts = [text_from_datetime(moment) for moment in moments]
    assert texts == sorted(texts)
    assert {len(text) for text in texts} == {27}
    assert [datetime_from_text(text) for text in texts] == moments
    assert text_from_datetime(datetime(7, 1, 1, tzinfo=UTC)) == "0007-01-01T00:00:00.000000Z"


def test_other_offsets_become_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert text_from_datetime(datetime(2026, 1, 1, 3, tzinfo=tokyo)) == "2025-12-31T18:00:00.000000Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20T14:03:22Z",
        "2026-11-20t14:03:22z",
        "2026-11-20 14:03:22+00:00",
        "2026-11-20T23:03:22.000+09:00",
        "2026-11-20T14:03:22.000000000-00:00",
    ],
)
def test_every_form_of_rfc_3339_is_read(text: str) -> None:
    assert datetime_from_text(text) == datetime(2026, 11, 20, 14, 3, 22, tzinfo=UTC)
    assert datetime_from_text(text).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-11-20", "2026-11-20T14:03:22", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+05:00", "1\x00"],
)
def test_what_names_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        datetime_from_text(text)


def test_a_naive_datetime_is_refused() -> None:
    with pytest.raises(ValueError, match="no UTC offset"):
        text_from_datetime(datetime(2026, 1, 1))
