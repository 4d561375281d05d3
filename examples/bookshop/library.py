"""The one place that knows which library runs the shop's tasks.

The rest of the shop is an ordinary Dramatiq program. With ``BOOKSHOP_LIBRARY=dramatiq`` it is one in fact: then nothing
of Greenroom is imported. Types are checked against Greenroom.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

LIBRARY = os.environ.get("BOOKSHOP_LIBRARY", "greenroom")

if TYPE_CHECKING or LIBRARY == "greenroom":
    import greenroom as dramatiq
    from greenroom.brokers.stub import StubBroker
    from greenroom.middleware import AsyncIO, CurrentMessage
else:
    import dramatiq
    from dramatiq.brokers.stub import StubBroker
    from dramatiq.middleware import AsyncIO, CurrentMessage

__all__ = ["LIBRARY", "AsyncIO", "CurrentMessage", "StubBroker", "dramatiq"]
