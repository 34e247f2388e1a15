"""Random writers against random polls: nothing is read while it is being written, and nothing is lost."""

import os
import random

import pytest

from mmserver.errors import ArtifactUnstable
from mmserver.watching.identities import GroupFiles
from mmserver.watching.settling import Watcher

SETTLE_S = 2.0


def replaced(path, data):
    new = path.with_name(".new")
    new.write_bytes(data)
    new.rename(path)


def rewritten_with_old_mtime(path, data):
    mtime_ns = path.stat().st_mtime_ns if path.exists() else None
    path.write_bytes(data)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))


WRITES = [lambda path, data: path.write_bytes(data), replaced, rewritten_with_old_mtime]


class World:
    """Four groups that are written and deleted at random, and when that last made a difference that a poll can see."""

    def __init__(self, root, rng):
        self.root, self.rng = root, rng
        self.written_at = {}
        self.deleted_at = {}
        self.names_at_poll = set()
        self.n_writes = 0

    def act(self):
        key = self.rng.choice(["a", "b", "sub/c", "sub/d"])
        path = self.root.path / f"{key}{self.rng.choice(['_info.pkl', '_model.pkl'])}"
        path.parent.mkdir(exist_ok=True)
        self.n_writes += 1
        if self.rng.random() < 0.25:
            path.unlink(missing_ok=True)
            self.written_at.pop(path.name, None)
            if path.name in self.names_at_poll:
                self.deleted_at[path.name] = self.root.clock.now
        else:
            self.rng.choice(WRITES)(path, b"%06d" % self.n_writes)
            self.written_at[path.name] = self.root.clock.now

    def touched_at(self, key):
        times = [*self.written_at.items(), *self.deleted_at.items()]
        return max((at for name, at in times if name.startswith(f"{key}_")), default=0.0)

    def content(self):
        found = {}
        for path in self.root.path.rglob("*_*.pkl"):
            found.setdefault(path.name.partition("_")[0], {})[path.name] = path.read_bytes()
        return found


@pytest.mark.parametrize("seed", range(60))
def test_no_group_is_released_before_it_was_quiet_and_no_change_is_lost(root, make_poller, seed):
    rng = random.Random(seed)
    poller = make_poller(settle_s=SETTLE_S, max_wait_s=15.0, rehash_s=200.0)
    world = World(root, rng)
    root.write_group("anchor0")
    root.write_group("anchor1")
    for _ in range(120):
        root.clock.now += rng.choice([0.0, 0.1, 0.5, 1.0, 2.0, 3.0])
        if rng.random() < 0.5:
            world.act()
            continue
        observation = poller.poll(0.0)
        for group in observation.changed:
            assert root.clock.now - world.touched_at(group.group_key) >= SETTLE_S
        for key in observation.gone:
            assert root.clock.now - world.touched_at(key) >= SETTLE_S
        world.names_at_poll = set(world.written_at)
    for _ in range(25):
        poller.poll(3.0, accept_vanished=True)
    assert poller.content == world.content()


def test_a_pair_is_never_read_between_its_two_writes(root):
    """A10, 1000 random interleavings of polls with a writer that takes less than settle_s from one file to the other."""
    rng = random.Random(10)
    for run in range(1000):
        key = f"r{run}"
        events = poll_and_write_times(rng)
        watcher = Watcher({}, settle_s=SETTLE_S, max_wait_s=1e9)
        start = root.clock.now
        last = None
        for at_s, action in events:
            root.clock.now = start + at_s
            if action is not None:
                name, generation = action
                root.write(f"{key}{name}", b"%d" % generation)
                continue
            for group in watcher.observe(root.scan()).changed:
                last = read_pair(root, watcher, group) or last
                assert last is None or len(set(last)) == 1
        assert last == [b"2", b"2"]
        for name in ("_info.pkl", "_model.pkl"):
            (root.path / f"{key}{name}").unlink()


def poll_and_write_times(rng):
    """Two generations of a pair of files, each pair within settle_s, and polls at any time; then polls to the end."""
    events = []
    at_s = rng.uniform(0, 1)
    for generation in (1, 2):
        names = ["_info.pkl", "_model.pkl"]
        rng.shuffle(names)
        for name in names:
            events.append((at_s, (name, generation)))
            at_s += rng.uniform(0, SETTLE_S * 0.99)
        at_s += rng.uniform(0, 3 * SETTLE_S)
    events += [(rng.uniform(0, at_s), None) for _ in range(rng.randint(1, 8))]
    events += [(at_s + SETTLE_S * i, None) for i in (1, 2.1, 3.2)]
    return sorted(events, key=lambda event: event[0])


def read_pair(root, watcher, group: GroupFiles):
    try:
        content = root.read(group)
    except ArtifactUnstable:
        return None
    watcher.loaded(group, 1 << 62, root.clock.now)
    return list(content.values()) if len(content) == 2 else [b"incomplete", *content.values()]
