"""The threads that answer requests, and how many requests may wait for them."""

from collections.abc import Callable
from typing import Any

from waitress.task import ThreadedTaskDispatcher


class Pool(ThreadedTaskDispatcher):  # type: ignore[misc]
    """waitress's pool of threads, with a queue that has an end."""

    def __init__(self, n_threads: int, max_waiting: int, begin_thread: Callable[[], None] = lambda: None) -> None:
        """`begin_thread` is the first that each thread calls."""
        super().__init__()
        self._begin_thread = begin_thread
        self.take_by_io_thread: Callable[[Any], bool] = lambda _channel: False
        """Asked for each task first: whether the I/O thread does it itself."""
        self._max_waiting = max_waiting
        self.set_thread_count(n_threads)

    def handler_thread(self, thread_no: int) -> None:
        """What each thread runs."""
        self._begin_thread()
        super().handler_thread(thread_no)

    def n_waiting(self) -> int:
        """Requests that no thread is about to take."""
        n_idle: int = len(self.threads) - self.stop_count - self.active_count
        return max(0, len(self.queue) - n_idle)

    def has_room(self) -> bool:
        """Whether one more request may wait."""
        return self.n_waiting() < self._max_waiting

    def add_task(self, task: Any) -> None:
        """Called by a connection for each request that becomes its first."""
        if not self.take_by_io_thread(task):
            self.queue_task(task)

    def queue_task(self, task: Any) -> None:
        """Leave a connection to the next thread that is free; waitress's own method would log how long the queue is."""
        with self.lock:
            self.queue.append(task)
            self.queue_cv.notify()
