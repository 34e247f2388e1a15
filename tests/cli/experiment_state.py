"""What tests of `mmserver experiments` share: the arms, and fields as they are printed."""

from typing import Any

ARMS = ("--control", "hybrid:1.0.0", "--treatment", "hybrid:2.0.0")


def fields(done: Any) -> dict[str, str]:
    """What was printed as one line for each field."""
    _, *lines = done.stdout.splitlines()
    return dict(line.split("\t", 1) for line in lines)
