"""Times as text: one fixed form, so that sorting the text sorts the times."""

from datetime import UTC, datetime


def text_from_datetime(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, always 27 characters: 2026-11-20T14:03:22.000000Z.

    Raises:
        ValueError: the datetime is naive.
    """
    if moment.utcoffset() is None:
        raise ValueError(f"{moment.isoformat()} has no UTC offset")
    utc = moment.astimezone(UTC)
    return utc.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def datetime_from_text(text: str) -> datetime:
    """The aware UTC datetime that an RFC 3339 text names; digits beyond microseconds are dropped.

    Raises:
        ValueError: it is not a time, or has no UTC offset.
    """
    moment = datetime.fromisoformat(text.upper())
    if moment.utcoffset() is None:
        raise ValueError(f"{text!r} has no UTC offset")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text!r} is out of range") from error
