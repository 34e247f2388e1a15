"""What one job in the guarded worker may use."""

import msgspec


class JobLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one job; the kernel keeps all but the wall clock and the answer's size, which the server keeps.

    Units:
        memory_bytes: address space above what the worker has mapped before the job, handlers' modules included.
        cpu_s: processor time of the whole process, SIGXCPU at the limit and SIGKILL a second later.
    """

    memory_bytes: int = 2 << 30
    cpu_s: int = 20
    wall_s: float = 30.0
    max_result_bytes: int = 1 << 30
    max_open_files: int = 16
    max_written_file_bytes: int = 0
    max_processes: int = 0
