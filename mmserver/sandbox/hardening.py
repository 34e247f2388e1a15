"""How a freshly forked child gives up its rights, step by step; each step says "on" or why it could not be had here.

The order matters: privileges are dropped before the calls that would restore them are filtered, and the system-call
filter is last.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
from collections.abc import Callable

from mmserver.sandbox import seccomp
from mmserver.sandbox.limits import JobLimits

ON = "on"
NOBODY = 65534

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
# Landlock's calls have the same numbers on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
# ABI version: how many rights of the file system, of the network, and scopes it knows (from that version on).
_LANDLOCK_RIGHTS = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}


class StepUnavailableError(Exception):
    """A hardening step that cannot be had here; the message says why."""


class Hardener:
    """The hardening of one job's child: `steps` after `harden` says what each step came to.

    It is made in the zygote, so that the C library is open already; all but the namespaces happens in the child.
    """

    def __init__(self, limits: JobLimits) -> None:
        self._limits = limits
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._mapped_bytes = _mapped_bytes()
        self.steps: dict[str, str] = {}

    def leave_namespaces(self) -> None:
        """Done once by the zygote, which needs neither network nor mounts any more; its children are born outside.

        Making and tearing down a network namespace for every job would cost as much as the job.
        """
        as_root = os.geteuid() == 0
        self._take("namespaces", self._root_leaves_namespaces if as_root else self._user_leaves_namespaces)

    def harden_with_files(self, parent_pid: int) -> None:
        """Less than `harden`, for a process of ours that goes on reading and writing files: the limits, and no privileges.

        A process whose parent died meanwhile exits here.
        """
        self._take("rlimits", self._limit_resources)
        self._take("no_capabilities", self._drop_capabilities)
        self._take("no_new_privs", lambda: self._prctl(_PR_SET_NO_NEW_PRIVS, 1))
        self._end_with(parent_pid)

    def harden(self, zygote_pid: int) -> None:
        """Give up everything but computing, reading and writing what is open.

        A process whose zygote died meanwhile exits here.
        """
        as_root = os.geteuid() == 0
        self._take("rlimits", self._limit_resources)
        if as_root:
            self._take("unprivileged", self._become_nobody)
        self._take("no_capabilities", self._drop_capabilities)
        self._take("no_new_privs", lambda: self._prctl(_PR_SET_NO_NEW_PRIVS, 1))
        self._take("landlock", self._renounce_files)
        self._end_with(zygote_pid)
        self._take("seccomp", self._filter_calls)

    def _end_with(self, parent_pid: int) -> None:
        self._take("not_dumpable", lambda: self._prctl(_PR_SET_DUMPABLE, 0))
        self._take("parent_death_signal", lambda: self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
        if os.getppid() != parent_pid:
            os._exit(1)

    def _take(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except StepUnavailableError as error:
            self.steps[name] = f"unavailable: {error}"
        except (OSError, ValueError) as error:
            self.steps[name] = f"unavailable: {_reason(error)}"
        else:
            self.steps[name] = ON

    def _limit_resources(self) -> None:
        limits = self._limits
        for kind, soft, hard in (
            (resource.RLIMIT_AS, self._mapped_bytes + limits.memory_bytes, None),
            (resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + 1),
            (resource.RLIMIT_NOFILE, limits.max_open_files, None),
            (resource.RLIMIT_FSIZE, limits.max_written_file_bytes, None),
            (resource.RLIMIT_NPROC, limits.max_processes, None),
            (resource.RLIMIT_CORE, 0, None),
        ):
            ceiling = resource.getrlimit(kind)[1]
            wanted = soft if hard is None else hard
            allowed = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
            resource.setrlimit(kind, (min(soft, allowed), allowed))

    def _user_leaves_namespaces(self) -> None:
        self._unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWNS)

    def _root_leaves_namespaces(self) -> None:
        self._unshare(_CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWNS)

    def _become_nobody(self) -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    def _drop_capabilities(self) -> None:
        """None are left, nor those that a new user namespace gives over itself."""
        header, nothing = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
        if self._libc.capset(header, nothing) != 0:
            raise OSError(ctypes.get_errno(), "capset")

    def _unshare(self, flags: int) -> None:
        if self._libc.unshare(flags) != 0:
            raise OSError(ctypes.get_errno(), "unshare")

    def _prctl(self, option: int, value: int) -> None:
        if self._libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    def _renounce_files(self) -> None:
        version = self._syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
        n_file, n_net, n_scopes = _LANDLOCK_RIGHTS[min(version, max(_LANDLOCK_RIGHTS))]
        rights = [(1 << n_file) - 1]
        if n_net:
            rights.append((1 << n_net) - 1)
        if n_scopes:
            rights.append((1 << n_scopes) - 1)
        attributes = struct.pack(f"={len(rights)}Q", *rights)
        ruleset = self._syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
        try:
            self._syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0)
        finally:
            os.close(ruleset)

    def _syscall(self, number: int, first: bytes | int | None, second: int, third: int) -> int:
        argument = ctypes.c_long(first) if isinstance(first, int) else first
        found = self._libc.syscall(ctypes.c_long(number), argument, ctypes.c_long(second), ctypes.c_long(third))
        if found < 0:
            raise OSError(ctypes.get_errno(), "landlock")
        return int(found)

    def _filter_calls(self) -> None:
        machine = os.uname().machine
        if machine not in seccomp.ARCHITECTURES or ctypes.sizeof(ctypes.c_void_p) != 8:
            raise StepUnavailableError(f"no filter is written for {machine}")
        program = seccomp.program(machine, os.getpid())
        code = ctypes.create_string_buffer(program, len(program))
        header = _Program(len(program) // 8, ctypes.addressof(code))
        if self._libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(header), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "seccomp")


class _Program(ctypes.Structure):
    _fields_ = (("n_steps", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def set_not_dumpable() -> None:
    """Keep other processes of the same user from tracing this one or writing into its memory."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0)


def _mapped_bytes() -> int:
    """This process's address space; where /proc is not mounted a generous guess."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  one read on a path that is not the user's
            n_pages = int(file.read().split()[0])
    except OSError:
        return 1 << 30
    return n_pages * resource.getpagesize()


def _reason(error: OSError | ValueError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return errno.errorcode.get(number, str(number)) if number else str(error)
