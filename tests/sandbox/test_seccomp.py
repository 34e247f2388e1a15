"""The filter's decisions on both architectures, found by interpreting its program, and its numbers against the kernel's headers."""

import errno
import re
import struct
from pathlib import Path

import pytest

from mmserver.sandbox import seccomp

KILL, ALLOW = 0x80000000, 0x7FFF0000
PID = 4242
MACHINES = list(seccomp.ARCHITECTURES)
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def decide(machine: str, number: int, arguments: tuple[int, ...] = (), arch: int | None = None) -> int:
    """What the kernel would return for one call: a small classic BPF interpreter."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, seccomp.ARCHITECTURES[machine] if arch is None else arch, 0, *padded)
    program = list(struct.iter_unpack("<HBBI", seccomp.program(machine, PID)))
    at, word = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            (word,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[code]
            at += if_true if holds else if_false


def by_number(machine: str, calls: dict[str, tuple[int | None, int | None]]) -> set[int]:
    column = MACHINES.index(machine)
    return {numbers[column] for numbers in calls.values() if numbers[column] is not None}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_not_named_kills(machine: str) -> None:
    column = MACHINES.index(machine)
    refused = {name: numbers for name, (_, numbers) in seccomp.REFUSED.items()}
    by_argument = {numbers[column] for numbers in (seccomp.MMAP, seccomp.MPROTECT, seccomp.FCNTL, seccomp.PRLIMIT64)}
    by_argument.add(seccomp.TGKILL[column])
    for number in range(600):
        if number in by_number(machine, seccomp.ALLOWED):
            assert decide(machine, number) == ALLOW
        elif number in by_number(machine, refused):
            assert decide(machine, number) & 0xFFFF0000 == 0x00050000
        elif number not in by_argument:
            assert decide(machine, number) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architectures_calls_kill(machine: str) -> None:
    other = next(arch for name, arch in seccomp.ARCHITECTURES.items() if name != machine)
    assert decide(machine, 0, arch=other) == KILL
    assert decide(machine, 0, arch=0x40000003) == KILL
    assert decide(machine, 0x40000000) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide(machine: str) -> None:
    column = MACHINES.index(machine)
    refused, forbidden = 0x00050000 | errno.EACCES, 0x00050000 | errno.EPERM
    for call in (seccomp.MMAP, seccomp.MPROTECT):
        assert decide(machine, call[column], (0, 4096, 3)) == ALLOW
        assert decide(machine, call[column], (0, 4096, 7)) == refused
        assert decide(machine, call[column], (0, 4096, 4)) == refused
    assert [decide(machine, seccomp.FCNTL[column], (3, command)) for command in (1, 3)] == [ALLOW, ALLOW]
    assert {decide(machine, seccomp.FCNTL[column], (3, command)) for command in (0, 2, 4, 8, 10, 1030)} == {forbidden}
    assert decide(machine, seccomp.TGKILL[column], (PID, PID, 6)) == ALLOW
    assert decide(machine, seccomp.TGKILL[column], (1, 1, 6)) == KILL
    assert decide(machine, seccomp.PRLIMIT64[column], (0, 7, 0, 1)) == ALLOW
    for arguments in ((1, 7, 0, 1), (0, 7, 1, 0), (0, 7, 1 << 32, 0)):
        assert decide(machine, seccomp.PRLIMIT64[column], arguments) == forbidden


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip("the kernel's headers are not installed (apt-get install linux-libc-dev)")
    text = HEADERS[machine].read_text()
    known = {
        name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(?:__NR\w*\+)?(\d+)", text)
    }
    by_argument = {
        "mmap": seccomp.MMAP,
        "mprotect": seccomp.MPROTECT,
        "fcntl": seccomp.FCNTL,
        "tgkill": seccomp.TGKILL,
        "prlimit64": seccomp.PRLIMIT64,
    }
    refused = {name: numbers for name, (_, numbers) in seccomp.REFUSED.items()}
    # The generic table calls it fstatat.
    known.setdefault("newfstatat", known.get("fstatat", -1))
    for name, numbers in {**seccomp.ALLOWED, **refused, **by_argument}.items():
        number = numbers[MACHINES.index(machine)]
        if number is not None:
            assert known[name] == number, name
