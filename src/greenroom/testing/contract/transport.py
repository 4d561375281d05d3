"""The contract of a ``Transport``, put together."""

from __future__ import annotations

from .acting import ActingContract
from .claiming import ClaimingContract
from .crashing import CrashingContract
from .lifecycle import LifecycleContract
from .looking import AdminContract
from .processes import ProcessContract
from .settling import SettlingContract
from .waiting import WaitingContract


class TransportContract(
    ClaimingContract,
    SettlingContract,
    AdminContract,
    ActingContract,
    WaitingContract,
    LifecycleContract,
    CrashingContract,
    ProcessContract,
):
    """All that an engine has to do. Subclass it, call the subclass ``Test...``, and say in ``make`` how to make one.

    ``TransportKit`` documents the hooks.
    """
