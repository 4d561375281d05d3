"""What tests need: a clock that is set by hand, and the contract suites that every engine has to pass.

Nothing is imported here, so that a program's tests load only what they use:

* ``greenroom.testing.clock``: ``ManualClock``;
* ``greenroom.testing.contract``: ``TransportContract``, for those who write an engine (needs pytest).
"""
