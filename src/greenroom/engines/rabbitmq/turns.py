"""Who drives the one sending connection, and who is next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from .parcel import Parcel


class Turns:
    """One thread drives at a time; the others sleep until their parcel is done, or it is their turn. Any thread.

    Parameters:
      wake: Makes who drives look into the inbox.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._mutex = threading.Lock()  # guards: who drives and who waits change together; never held across I/O
        self._driven = False
        self._waiting: deque[Parcel] = deque()
        self._wake = wake

    def try_take(self) -> bool:
        """True if nobody drives: then the caller does."""
        with self._mutex:
            if self._driven:
                return False
            self._driven = True
            return True

    def take(self, parcel: Parcel, deadline_s: float) -> bool:
        """Waits until the caller drives (True), or its parcel is done, or the deadline (``monotonic``) is over."""
        with self._mutex:
            if not self._driven:
                self._driven = True
                return True
            baton = threading.Lock()
            baton.acquire()
            parcel.baton = baton
            self._waiting.append(parcel)
        self._wake()
        baton.acquire(timeout=max(0.0, deadline_s - monotonic()))
        with self._mutex:
            parcel.baton = None
            drives, parcel.drives = parcel.drives, False
            if not drives and parcel in self._waiting:
                self._waiting.remove(parcel)
            return drives

    def hand_on(self) -> None:
        """The caller has driven enough. The next one that waits drives."""
        with self._mutex:
            while self._waiting:
                parcel = self._waiting.popleft()
                if not parcel.done and parcel.baton is not None:
                    parcel.drives = True
                    parcel.baton.release()
                    return
            self._driven = False

    def tell_done(self, parcel: Parcel) -> None:
        """Ends the sleep of who waits for a parcel."""
        with self._mutex:
            if parcel.baton is not None and not parcel.drives:
                parcel.baton.release()
                parcel.baton = None

    def claim(self, parcel: Parcel) -> bool:
        """True if the parcel may be written; from then on it is taken, and no cancelling undoes that."""
        with self._mutex:
            if parcel.cancelled:
                return False
            parcel.taken = True
            return True

    def cancel(self, parcel: Parcel) -> bool:
        """Keeps a parcel from being written; False if it was taken already."""
        with self._mutex:
            parcel.cancel()
            return not parcel.taken
