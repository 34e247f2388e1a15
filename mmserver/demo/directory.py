"""The demo's directory: what is written there, in which order, and which files are never touched.

A small file, OWN_LIST, names the files that the demo wrote; it stands before the first of them is written, so a run that was
killed is completed by the next one. Every file is written beside its place and renamed into it.
"""

import csv
import io
import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import msgspec
import numpy as np

from mmserver.demo.market_data import MarketSeries, load_market_series
from mmserver.demo.requests import DIRECTORY as REQUESTS
from mmserver.demo.requests import request_files, request_names
from mmserver.demo.training import RETURN_NAME, FactorIc, TrainedGroup, train_group
from mmserver.demo.venues import VENUE_SHARES, venue_rows
from mmserver.errors import DirectoryInvalid

OWN_LIST = ".mmserver-demo.json"
WINDOW_YEARS = 12
LAST_YEARS = (2016, 2017, 2018)
"""Where the training windows end: the first one, and one for each retraining; the data ends in 2018, and the first one follows."""
GROUP_SUFFIXES = ("_factors.txt", "_ic.csv", "_info.pkl", "_model.pkl")
PICKLE_PROTOCOL = 4
VENUES_README_NAME = "venues/README.txt"
VENUES_README = """EXAMPLES, not market facts: these thresholds are made from the daily turnover (close x volume) of the S&P 500 and the NASDAQ
composite, scaled down to the size of an order by an invented share. Written by `mmserver demo`.
"""


class OwnList(msgspec.Struct, frozen=True):
    """What OWN_LIST holds: the files that are ours, the training window, and whether all were written."""

    window: int
    complete: bool
    files: list[str]


@dataclass(frozen=True)
class DemoResult:
    """What is in the directory now: where, up to which year, the groups that were trained, and whether it was written."""

    directory: Path
    last_year: int
    written: bool
    groups: list[TrainedGroup]
    starts_over: bool = False
    """Whether the window before it was the last one."""


Report = Callable[[str, int, int], None]
"""Told the step that starts, its number from 0 on, and how many steps there are."""


def write_demo(directory: Path, *, retrain: bool, report: Report) -> DemoResult:
    """Train the demo's models and write them as artifact files; nothing happens when they are there already.

    With `retrain`, or when the last run was killed, the next (or the interrupted) window is written over them; the first one comes
    after the last one.

    Raises:
        DirectoryInvalid: files that the demo did not write are in the way.
        ExtraMissing: the packages of the extra `demo` are not installed.
    """
    before = _own_list(directory)
    window = _next_window(directory, before, retrain=retrain)
    if window is None:
        return DemoResult(directory, LAST_YEARS[before.window if before else 0], written=False, groups=[])
    all_series = [_window(series, LAST_YEARS[window]) for series in load_market_series()]
    names = _file_names(all_series)
    _refuse_foreign_files(directory, names, before)
    n_steps = len(all_series) + 1
    groups = []
    for step, series in enumerate(all_series):
        report(f"training {series.symbol}", step, n_steps)
        groups.append(train_group(series))
    report("writing the files", len(all_series), n_steps)
    _write(directory, OwnList(window, complete=False, files=names), _contents(groups, all_series))
    report("done", n_steps, n_steps)
    starts_over = before is not None and window < before.window
    return DemoResult(directory, LAST_YEARS[window], written=True, groups=groups, starts_over=starts_over)


def venue_files(directory: Path) -> dict[str, Path]:
    """The venue files of a demo directory: venue → path."""
    return {venue: directory / _venue_file(venue) for venue in VENUE_SHARES}


def _window(series: MarketSeries, last_year: int) -> MarketSeries:
    first_year = last_year - WINDOW_YEARS + 1
    return series.between(np.datetime64(f"{first_year}-01-01"), np.datetime64(f"{last_year}-12-31"))


def _own_list(directory: Path) -> OwnList | None:
    try:
        return msgspec.json.decode((directory / OWN_LIST).read_bytes(), type=OwnList)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise DirectoryInvalid(root_path=str(directory), reason="is not a directory") from error
    except msgspec.DecodeError as error:
        raise DirectoryInvalid(root_path=str(directory), reason=f"{OWN_LIST} is damaged; choose another one") from error


def _next_window(directory: Path, before: OwnList | None, *, retrain: bool) -> int | None:
    """The window to write; None when the files are there and no other window is wanted."""
    if before is None:
        return 0
    if not 0 <= before.window < len(LAST_YEARS):
        raise DirectoryInvalid(root_path=str(directory), reason=f"{OWN_LIST} is damaged; choose another one")
    whole = before.complete and all((directory / name).is_file() for name in before.files)
    if not whole:
        return before.window
    if not retrain:
        return None
    return (before.window + 1) % len(LAST_YEARS)


def _refuse_foreign_files(directory: Path, names: list[str], before: OwnList | None) -> None:
    own = set(before.files) if before else set()
    foreign = [name for name in names if name not in own and os.path.lexists(directory / name)]
    if foreign:
        shown = ", ".join(foreign[:3])
        raise DirectoryInvalid(root_path=str(directory), reason=f"has {shown}, which the demo did not write")


# --- the files --------------------------------------------------------------------------------------------------------


def _file_names(all_series: list[MarketSeries]) -> list[str]:
    keys = [f"{series.symbol}_{RETURN_NAME}" for series in all_series]
    of_groups = [f"{key}{suffix}" for key in keys for suffix in GROUP_SUFFIXES]
    of_requests = request_names([series.symbol for series in all_series])
    return [*of_groups, *(_venue_file(venue) for venue in VENUE_SHARES), VENUES_README_NAME, *of_requests]


def _contents(groups: list[TrainedGroup], all_series: list[MarketSeries]) -> Iterator[tuple[str, bytes]]:
    for group in groups:
        key = group.group_key
        yield f"{key}_factors.txt", "".join(f"{name}\n" for name in group.factors).encode()
        yield f"{key}_ic.csv", _ic_csv(group)
        yield f"{key}_info.pkl", pickle.dumps(group.info, protocol=PICKLE_PROTOCOL)
        yield f"{key}_model.pkl", pickle.dumps(group.model, protocol=PICKLE_PROTOCOL)
    for venue, share in VENUE_SHARES.items():
        yield _venue_file(venue), pickle.dumps(venue_rows(all_series, share), protocol=PICKLE_PROTOCOL)
    yield VENUES_README_NAME, VENUES_README.encode()
    yield from request_files(all_series)


def _ic_csv(group: TrainedGroup) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(FactorIc))
    writer.writerows(astuple(row) for row in group.ic_rows)
    return text.getvalue().encode()


def _venue_file(venue: str) -> str:
    return f"venues/{venue}_quantiles.pkl"


def _write(directory: Path, own: OwnList, contents: Iterator[tuple[str, bytes]]) -> None:
    try:
        for folder in ("venues", REQUESTS):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        _replace(directory / OWN_LIST, msgspec.json.encode(own))
        for name, content in contents:
            _replace(directory / name, content)
        _replace(directory / OWN_LIST, msgspec.json.encode(msgspec.structs.replace(own, complete=True)))
    except OSError as error:
        raise DirectoryInvalid(root_path=str(directory), reason=f"cannot be written: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    """Write beside the path and rename into it: a reader sees the old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
