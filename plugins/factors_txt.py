"""`_factors.txt`: one factor name a line; the line number, from 0, is the model's input dimension."""

from mmserver import Artifact, ArtifactFormat, FactorList, Undecodable, hookimpl


def parse_factors(artifact: Artifact) -> FactorList:
    """The names in order.

    Raises:
        Undecodable: not UTF-8, no names, an empty line between names, or a name twice.
    """
    lines = artifact.data.decode("utf-8").removeprefix("\ufeff").split("\n")
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise Undecodable("empty", "no factor names")
    if "" in names:
        raise Undecodable("malformed", f"line {names.index('') + 1} is empty, so the dimensions after it are in doubt")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Undecodable("malformed", f"factor {twice!r} stands there twice")
    return FactorList(factors=tuple(names))


@hookimpl
def mmserver_formats() -> list[ArtifactFormat]:
    """Claims `_factors.txt`."""
    return [ArtifactFormat(name="factors_txt", suffix="_factors.txt", role="factors", parse=parse_factors)]
