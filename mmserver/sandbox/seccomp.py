"""The system calls that a job may make, as a classic BPF program for Linux on x86_64 and aarch64.

What is not named kills the process. Calls by which libraries look around (files, settings) are refused with an error
instead, because native libraries probe files such as /proc/cpuinfo and go on without them.
"""

import errno
import struct

_LOAD_WORD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL_PROCESS, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_X32_CALLS = 0x40000000
_PROT_EXEC = 0x4
_F_GETFD, _F_GETFL = 1, 3
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARGUMENT = 0, 4, 16

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (number on x86_64, number on aarch64); None where the architecture has no such call. Hot ones first.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "brk": (12, 214),
    "madvise": (28, 233),
    "clock_gettime": (228, 113),
    "readv": (19, 65),
    "writev": (20, 66),
    "lseek": (8, 62),
    "close": (3, 57),
    "fstat": (5, 80),
    "mincore": (27, 232),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "exit": (60, 93),
    "exit_group": (231, 94),
}

REFUSED: dict[str, tuple[int, tuple[int | None, int | None]]] = {
    "open": (errno.EACCES, (2, None)),
    "openat": (errno.EACCES, (257, 56)),
    "openat2": (errno.EACCES, (437, 437)),
    "stat": (errno.EACCES, (4, None)),
    "lstat": (errno.EACCES, (6, None)),
    "newfstatat": (errno.EACCES, (262, 79)),
    "statx": (errno.EACCES, (332, 291)),
    "access": (errno.EACCES, (21, None)),
    "faccessat": (errno.EACCES, (269, 48)),
    "faccessat2": (errno.EACCES, (439, 439)),
    "readlink": (errno.EACCES, (89, None)),
    "readlinkat": (errno.EACCES, (267, 78)),
    "getcwd": (errno.EACCES, (79, 17)),
    "getdents64": (errno.EACCES, (217, 61)),
    "statfs": (errno.EACCES, (137, 43)),
    "fstatfs": (errno.EACCES, (138, 44)),
    "ioctl": (errno.ENOTTY, (16, 29)),
    # It could lift what hardening set: the parent-death signal, dumpability.
    "prctl": (errno.EPERM, (157, 167)),
    "memfd_create": (errno.EPERM, (319, 279)),
    "sched_setaffinity": (errno.EPERM, (203, 122)),
    "mbind": (errno.EPERM, (237, 235)),
    "set_mempolicy": (errno.EPERM, (238, 237)),
    "get_mempolicy": (errno.EPERM, (239, 236)),
}

# Allowed by their arguments.
MMAP, MPROTECT = (9, 222), (10, 226)
FCNTL, TGKILL, PRLIMIT64 = (72, 25), (234, 131), (302, 261)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _load_argument(index: int, *, high: bool = False) -> bytes:
    return _step(_LOAD_WORD, _AT_FIRST_ARGUMENT + 8 * index + (4 if high else 0))


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """Run `body`, which ends with a return on every way, for this call only."""
    return [_step(_JUMP_EQUAL, number, 0, len(body)), *body]


def _no_new_code(protection_argument: int) -> list[bytes]:
    """Refuse memory that can be executed."""
    return [
        _load_argument(protection_argument),
        _step(_JUMP_ANY_BIT, _PROT_EXEC, 0, 1),
        _step(_RETURN, _ERRNO | errno.EACCES),
        _step(_RETURN, _ALLOW),
    ]


def _read_flags_only() -> list[bytes]:
    """fcntl may look at a descriptor; F_SETOWN and F_SETSIG would send signals to other processes."""
    return [
        _load_argument(1),
        _step(_JUMP_EQUAL, _F_GETFD, 2, 0),
        _step(_JUMP_EQUAL, _F_GETFL, 1, 0),
        _step(_RETURN, _ERRNO | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]


def _signal_self_only(pid: int) -> list[bytes]:
    """abort() signals its own thread group; nobody else may be signalled."""
    return [
        _load_argument(0),
        _step(_JUMP_EQUAL, pid, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _KILL_PROCESS),
    ]


def _read_own_limits_only() -> list[bytes]:
    """prlimit(0, resource, NULL, old) reads; every other form is refused."""
    return [
        _load_argument(0),
        _step(_JUMP_EQUAL, 0, 0, 4),
        _load_argument(2),
        _step(_JUMP_EQUAL, 0, 0, 2),
        _load_argument(2, high=True),
        _step(_JUMP_EQUAL, 0, 1, 0),
        _step(_RETURN, _ERRNO | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]


def program(machine: str, pid: int) -> bytes:
    """The filter for a process, as an array of `struct sock_filter`.

    Raises:
        KeyError: `machine` (as platform.machine() names it) is not in ARCHITECTURES.

    Source:
        Linux, Documentation/userspace-api/seccomp_filter.rst; the numbers from the kernel's system-call tables.
    """
    column = list(ARCHITECTURES).index(machine) if machine in ARCHITECTURES else -1
    steps = [
        _step(_LOAD_WORD, _AT_ARCH),
        _step(_JUMP_EQUAL, ARCHITECTURES[machine], 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD_WORD, _AT_NUMBER),
        _step(_JUMP_GREATER_EQUAL, _X32_CALLS, 0, 1),
        _step(_RETURN, _KILL_PROCESS),
    ]
    for numbers in ALLOWED.values():
        number = numbers[column]
        if number is not None:
            steps += _when(number, [_step(_RETURN, _ALLOW)])
    steps += _when(MMAP[column], _no_new_code(2)) + _when(MPROTECT[column], _no_new_code(2))
    steps += _when(FCNTL[column], _read_flags_only())
    steps += _when(TGKILL[column], _signal_self_only(pid))
    steps += _when(PRLIMIT64[column], _read_own_limits_only())
    for error_number, numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            steps += _when(number, [_step(_RETURN, _ERRNO | error_number)])
    steps.append(_step(_RETURN, _KILL_PROCESS))
    return b"".join(steps)
