"""Random lives of a directory against a simple idea of what should be served, and what looking again and again costs."""

import contextlib
import gc
import os
import pickle
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.groups import group_detail
from mmserver.catalog.history import list_versions, resolve_version, rollback_model
from mmserver.errors import ArtifactInvalid

KEYS = [f"S{number}_ret_1h" for number in range(7)]
BAD = (b"", b"junk", pickle.dumps({"a": 1}), pickle.dumps(os.system))


class Life:
    """What was done to the directory, and what must come of it."""

    def __init__(self, opened: Any, rng: random.Random) -> None:
        self.opened = opened
        self.rng = rng
        self.files: dict[str, int | None] = dict.fromkeys(KEYS, 0)
        """By group key: the training that lies there, None for a bad file."""
        self.newest = dict.fromkeys(KEYS, 0)
        self.served = dict(self.newest)
        self.history: dict[str, dict[str, int]] = {}
        for key in KEYS:
            opened.artifacts.write_group(key, 0)
        opened.register()
        self.history[opened.model.serving.label] = dict(self.newest)

    def write(self) -> None:
        key, seed = self.rng.choice(KEYS), self.rng.randrange(6)
        self.opened.artifacts.write_group(key, seed)
        self.files[key] = seed

    def tear(self) -> None:
        key = self.rng.choice(KEYS)
        if key not in self.files:
            self.opened.artifacts.write_group(key, 0)
        data = self.opened.artifacts.model_pickles[0]
        bad = self.rng.choice([*BAD, data[: self.rng.randrange(1, len(data))]])
        self.opened.artifacts.write(f"{key}_model.pkl", bad)
        self.files[key] = None

    def delete(self) -> None:
        if len(self.newest) > 4 and len(self.newest.keys() - self.files.keys()) == 0:
            key = self.rng.choice(sorted(self.files))
            self.opened.artifacts.delete_group(key)
            del self.files[key]

    def touch(self) -> None:
        for path in self.opened.artifacts.path.iterdir():
            os.utime(path)

    def roll_back(self) -> None:
        label = self.rng.choice(sorted(self.history))
        rollback_model(self.opened.store, "alpha", label, Actor("test"))
        self.served = dict(self.history[label])

    def look(self) -> None:
        if self.rng.random() < 0.5:
            self.opened.settle()
            self.opened.poll(100)
        else:
            try:
                self.opened.refresh()
            except ArtifactInvalid:
                assert None in self.files.values()
        self.come_true()

    def come_true(self) -> None:
        found = {}
        for key, seed in self.files.items():
            if seed is not None:
                found[key] = seed
            elif key in self.newest:
                found[key] = self.newest[key]
        if found != self.newest:
            self.newest, self.served = found, dict(found)
            self.history[self.opened.model.serving.label] = dict(found)

    def check(self) -> None:
        model = self.opened.model
        seeds = {key: self.seed(group) for key, group in model.serving.groups.items()}
        assert seeds == self.served
        bad = {key for key, seed in self.files.items() if seed is None}
        assert set(self.opened.refusals()) == bad
        expected = "ok" if not bad else "stale" if bad & self.newest.keys() else "degraded"
        assert model.status == expected

    def seed(self, group: Any) -> Any:
        return group_detail(self.opened.store, group).record.info["seed"]


@pytest.mark.parametrize("number", range(3))
def test_whatever_happens_to_the_files_the_last_good_of_each_group_is_served(
    alpha: Any, restart: Callable[..., Any], number: int
) -> None:
    rng = random.Random(number)
    life = Life(alpha, rng)
    for _ in range(14):
        for _ in range(rng.randrange(1, 4)):
            rng.choice([life.write, life.write, life.tear, life.delete, life.touch])()
        life.look()
        life.check()
        if rng.random() < 0.2:
            life.roll_back()
            life.check()
        if rng.random() < 0.2:
            life.opened = restart(life.opened)
            life.check()
    opened = life.opened
    versions = list_versions(opened.store, "alpha", 999)
    assert {version.label for version in versions} >= set(life.history)
    for label, expected in life.history.items():
        version = resolve_version(opened.store, "alpha", label)
        assert {key: life.seed(group) for key, group in version.groups.items()} == expected
        for group in version.groups.values():
            assert opened.store.payloads.body(version, group, "payload", "gzip").content
    assert opened.actions().count("model.refreshed") + 1 == len(versions)


def traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def open_files() -> Counter[str]:
    """What this process has open; what other tests left to be collected is closed first, and may still be closed later."""
    gc.collect()
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return Counter(found)


def test_memory_does_not_grow_with_the_number_of_looks(registered: Any) -> None:
    def change(number: int) -> None:
        registered.artifacts.write("ETH_ret_1h_info.pkl", pickle.dumps(registered.artifacts.info(number % 5)))
        registered.poll(100)
        registered.poll(100)

    registered.artifacts.write("SOL_ret_1h_model.pkl", b"")
    for number in range(25):
        change(number)
    open_before = open_files()
    tracemalloc.start()
    try:
        registered.poll(100)
        before = traced_bytes()
        for _ in range(200):
            registered.poll(100)
        after_looks = traced_bytes()
        for number in range(50):
            change(number)
        after_changes = traced_bytes()
    finally:
        tracemalloc.stop()
    assert registered.model.serving.seq == 76
    assert after_looks - before < 60_000  # 300 bytes a look; threads of other tests allocate too
    assert after_changes - after_looks < 200_000
    assert not open_files() - open_before
