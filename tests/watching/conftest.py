"""A watched root of real files, a clock that only the test moves, and polling as a caller does it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmserver.errors import ArtifactUnstable
from mmserver.watching.beneath import open_root
from mmserver.watching.identities import GroupFiles, LoadedGroup
from mmserver.watching.names import ArtifactNames
from mmserver.watching.reading import read_group
from mmserver.watching.scanning import Scan, scan_tree
from mmserver.watching.settling import Observation, Watcher

SUFFIXES = ("_factors.txt", "_ic.csv", "_info.pkl", "_model.pkl", "_model.json")
MAX_BYTES = 1 << 20


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Root:
    """A root directory, and the scans that were made of it."""

    path: Path
    clock: Clock
    names: ArtifactNames = field(default_factory=lambda: ArtifactNames(SUFFIXES))
    last: Scan | None = None

    def write(self, relpath: str, data: bytes = b"x") -> Path:
        path = self.path / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def write_group(self, key: str, data: bytes = b"x") -> None:
        for suffix in ("_info.pkl", "_model.pkl"):
            self.write(key + suffix, data)

    def delete_group(self, key: str) -> None:
        for path in self.path.rglob(f"{key}_*"):
            path.unlink()

    def scan(self, **budget: float) -> Scan:
        self.last = scan_tree(self.path, self.names, self.last, clock=self.clock, **budget)
        return self.last

    def group(self, key: str) -> GroupFiles:
        return self.scan().groups[key]

    def problems(self) -> dict[str, str]:
        return {problem.path: problem.reason for problem in self.scan().problems}

    def read(self, group: GroupFiles) -> dict[str, bytes]:
        with open_root(self.path) as root:
            return {found.name: found.data for found in read_group(root, group, MAX_BYTES)}


@dataclass
class Poller:
    """Does with observations what a server does: reads, loads, forgets; `content` is what it would serve."""

    root: Root
    watcher: Watcher
    content: dict[str, dict[str, bytes]] = field(default_factory=dict)
    n_loads: int = 0

    def poll(self, after_s: float = 1.0, **options: object) -> Observation:
        self.root.clock.now += after_s
        observation = self.watcher.observe(self.root.scan(), **options)
        self.take(observation)
        return observation

    def take(self, observation: Observation) -> None:
        for group in observation.changed:
            self.load(group)
        for group in (*observation.suspicious, *observation.to_verify):
            if self.root.read(group) != self.content[group.group_key]:
                self.load(group)
            else:
                self.watcher.verified(group.group_key)
        for key in observation.gone:
            self.watcher.forget(key)
            self.content.pop(key, None)

    def load(self, group: GroupFiles) -> None:
        try:
            with open_root(self.root.path) as root:
                files = read_group(root, group, MAX_BYTES)
        except ArtifactUnstable:
            self.watcher.unstable(group.group_key, self.root.clock.now)
            return
        content = {found.name: found.data for found in files}
        self.n_loads += content != self.content.get(group.group_key)
        self.content[group.group_key] = content
        self.watcher.loaded(group, min(found.read_at_ns for found in files), self.root.clock.now)

    def settle(self) -> None:
        """Poll until everything that is there is loaded and hashed once more."""
        for _ in range(6):
            self.poll()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path, clock: Clock) -> Root:
    path = tmp_path / "root"
    path.mkdir()
    return Root(path, clock)


@pytest.fixture
def poller(root: Root) -> Poller:
    return Poller(root, Watcher({}, settle_s=2.0, max_wait_s=60.0))


@pytest.fixture
def make_poller(root: Root):
    def make(loaded: dict[str, LoadedGroup] | None = None, **options: float) -> Poller:
        return Poller(root, Watcher(loaded or {}, **{"settle_s": 2.0, **options}))

    return make


@pytest.fixture
def without_privileges():
    """A context in which file modes hold for the root user too; the files must be reachable for everyone."""

    @contextmanager
    def drop() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return drop


@pytest.fixture
def reachable_root(root: Root) -> Root:
    """The root with every directory on the way to it open to other users."""
    opened = []
    for parent in (root.path, *root.path.parents):
        mode = parent.stat().st_mode
        if mode & 0o005 != 0o005 and os.geteuid() == 0:
            parent.chmod(mode | 0o055)
            opened.append((parent, mode))
    yield root
    for parent, mode in opened:
        parent.chmod(mode)
