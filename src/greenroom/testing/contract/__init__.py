"""The contract suites: what an engine has to do, as tests that every engine runs. They need pytest.

Whoever writes an engine subclasses ``TransportContract`` in a test module and says how to make one::

    # tests/test_my_engine.py
    from greenroom.testing.contract import TransportContract
    from my_engine import MyTransport

    class TestMyEngine(TransportContract):
        def make(self, tmp_path, clock):
            return MyTransport(tmp_path / "messages", clock=clock)

``pytest tests/test_my_engine.py`` then runs the whole suite. What an engine cannot do it declares in its ``Features``,
and the tests of that are skipped with the reason; what it can do has to be done exactly so. ``TransportKit`` lists the
few hooks and flags that a subclass may set besides ``make``.

``StoreContract`` is the same for a store; ``StoreKit`` lists its hooks.
"""

import pytest

# Before the suites are imported, so that their asserts explain themselves.
_PARTS = "kit claiming settling looking acting waiting lifecycle crashing processes"
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS.split()))
pytest.register_assert_rewrite(
    *(f"{__name__}.store_{part}" for part in ("kit", "values", "limits", "sets", "trips", "watching"))
)

from .store import StoreContract  # noqa: E402  # see above
from .transport import TransportContract  # noqa: E402  # see above

__all__ = ["StoreContract", "TransportContract"]
