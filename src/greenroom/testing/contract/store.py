"""The contract of a ``Store``, put together."""

from __future__ import annotations

from .store_limits import LimitsContract
from .store_sets import SetsContract
from .store_trips import TripsContract
from .store_values import ValuesContract
from .store_watching import WatchingContract


class StoreContract(ValuesContract, LimitsContract, SetsContract, TripsContract, WatchingContract):
    """All that a store has to do. Subclass it, call the subclass ``Test...``, and say in ``make`` how to make one; and
    in ``transport_of``, if it is one with a transport.

    ``StoreKit`` documents the hooks.
    """
