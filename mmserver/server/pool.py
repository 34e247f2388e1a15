"""The threads that answer requests, and how many requests may wait for them."""

from typing import Any

from waitress.task import ThreadedTaskDispatcher


class Pool(ThreadedTaskDispatcher):  # type: ignore[misc]
    """waitress's pool of threads, with a queue that has an end."""

    def __init__(self, n_threads: int, max_waiting: int) -> None:
        super().__init__()
        self._max_waiting = max_waiting
        self.set_thread_count(n_threads)

    def n_waiting(self) -> int:
        """Requests that no thread is about to take."""
        n_idle: int = len(self.threads) - self.stop_count - self.active_count
        return max(0, len(self.queue) - n_idle)

    def has_room(self) -> bool:
        """Whether one more request may wait."""
        return self.n_waiting() < self._max_waiting

    def add_task(self, task: Any) -> None:
        """Queue a connection whose first request is to be answered; waitress's own method would log how long the queue is."""
        with self.lock:
            self.queue.append(task)
            self.queue_cv.notify()
