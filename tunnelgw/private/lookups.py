"""Threads that wait for the resolver, shared out among the visitors who ask for names.

A resolver that does not answer holds a thread for up to 30 seconds, so one visitor with many such names would keep
everybody's waiting. Each has a share of the threads (`access/shares.py`); what is beyond it waits in that visitor's own
queue, and the visitors who wait have their turns one after the other. This process's own look-ups use the loop's
threads.

Invariant: no more than `MOST` look-ups are under way; a place that one visitor gives back goes to another one first.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from tunnelgw.access.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 32  # at once for all visitors
T = TypeVar("T")
_Work = tuple["Future[Any]", "Callable[[], Any]"]


class LookUps:
    """`of(visitor)` is that visitor's executor. A thread is made when it is first needed."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="visitors")
        self._lock = threading.Lock()  # a look-up ends in its thread
        self._shares = Shares(MOST)
        self._waiting: dict[str, deque[_Work]] = {}  # in the order of their next turns

    def of(self, visitor: str) -> Executor:
        """An executor for what this visitor asks."""
        return _Share(self, visitor)

    def add(self, visitor: str, future: Future[Any], work: Callable[[], Any]) -> None:
        """Do this as soon as there is room."""
        with self._lock:
            self._waiting.setdefault(visitor, deque()).append((future, work))
            self._begin()

    def _begin(self) -> None:
        """Whatever there is room for. The lock is held."""
        for visitor in list(self._waiting):
            queue = self._waiting.pop(visitor)
            while queue and self._shares.room_for(visitor):
                future, work = queue.popleft()
                if future.set_running_or_notify_cancel():  # else nobody waits for it any more
                    self._shares.take(visitor)
                    self._threads.submit(self._do, visitor, future, work)
                    break  # the next one's turn
            if queue:
                self._waiting[visitor] = queue

    def _do(self, visitor: str, future: Future[Any], work: Callable[[], Any]) -> None:
        try:
            found = work()
        except BaseException as error:  # whoever asked gets it, as from any executor
            future.set_exception(error)
        else:
            future.set_result(found)
        with self._lock:
            self._shares.give_back(visitor)
            self._begin()


class _Share(Executor):
    """One visitor's."""

    def __init__(self, all_of_them: LookUps, visitor: str) -> None:
        self._all = all_of_them
        self._visitor = visitor

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As `Executor.submit`."""
        future: Future[T] = Future()
        self._all.add(self._visitor, future, lambda: fn(*args, **kwargs))
        return future
