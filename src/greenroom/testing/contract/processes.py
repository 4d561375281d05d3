"""The contract of forking: parent and child share the messages and nothing else."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from ...board import Board, Fate
from ...ports.transport import Transport
from .kit import (
    TransportKit,
    ack,
    claim,
    claim_one,
    consumer_of,
    drained,
    envelopes,
    needs_crashes,
    nobody_gets_any,
    settle,
)

#: Seconds after which a child that hangs is killed by its own alarm.
CHILD_LIMIT_S = 30


class ProcessContract(TransportKit):
    """A transport that crossed a fork works on both sides."""

    def test_a_child_pushes(self, live: Transport) -> None:
        """What a forked child pushes through the transport that it inherited, the parent claims."""
        self._needs_fork()
        live.push(envelopes(b"before"))
        in_child(lambda: live.push(envelopes(b"child")))
        live.push(envelopes(b"after"))
        assert drained(live) == [b"before", b"child", b"after"]

    def test_a_child_consumes(self, live: Transport) -> None:
        """A forked child claims and settles with a consumer of its own."""
        self._needs_fork()
        live.push(envelopes(b"1", b"2", b"3"))

        def work() -> None:
            consumer = consumer_of(live)
            first, second = claim(consumer, 2)
            assert len(settle(consumer, ack(first, *envelopes(b"pushed"))).settled) == 1
            assert second.body == b"2"
            consumer.close()

        in_child(work)
        assert drained(live) == [b"2", b"3", b"pushed"]

    def test_a_fork_leaves_the_parents_claims_alone(self, live: Transport) -> None:
        """What the parent had claimed before it forked stays its own while the child lives and after it ended."""
        self._needs_fork()
        live.push(envelopes(b"1", b"2"))
        consumer = consumer_of(live)
        delivery = claim_one(consumer)

        def work() -> None:
            assert drained(live) == [b"2"]

        in_child(work)
        assert nobody_gets_any(live)
        assert settle(consumer, ack(delivery)).settled
        live.push(envelopes(b"3"))
        assert claim_one(consumer).body == b"3"

    def test_a_child_that_dies_loses_nothing(self, live: Transport) -> None:
        """What a process held when it was killed comes to another, as a redelivery."""
        self._needs_fork()
        live.push(envelopes(b"1", b"2"))

        def work() -> None:
            claim(consumer_of(live), 2)
            os.kill(os.getpid(), signal.SIGKILL)

        in_child(work, expected=-signal.SIGKILL)
        again = claim(consumer_of(live), 2, within_s=self.recovery_s)
        assert [(delivery.body, delivery.redelivered) for delivery in again] == [(b"1", True), (b"2", True)]

    def test_an_exiting_child_does_not_disturb_the_parent(self, live: Transport) -> None:
        """Children that never use the transport leave it as it was, however they end."""
        self._needs_fork()
        consumer = consumer_of(live)
        live.push(envelopes(b"1"))
        delivery = claim_one(consumer)
        for _ in range(3):
            in_child(lambda: None)
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL), expected=-signal.SIGKILL)
        assert nobody_gets_any(live)
        assert settle(consumer, ack(delivery)).settled

    # Crashes

    def test_a_killed_process_is_charged(self, live: Transport, tmp_path: Path) -> None:
        """What a process ran when it was killed is charged, what it held is not; whoever started it says how it
        ended, and that is kept."""
        self._needs_fork()
        needs_crashes(live)
        live.push(envelopes(b"ran", b"held"))
        note = tmp_path / "board"

        def work() -> None:
            consumer = consumer_of(live)
            board = consumer.board(1, parent_pid=os.getppid())
            board.cells[0] = claim(consumer, 2)[0].mark
            note.write_text(str(board.path))
            os.kill(os.getpid(), signal.SIGKILL)

        in_child(work, expected=-signal.SIGKILL)
        board = Board.open(Path(note.read_text()))
        assert board is not None
        board.write_fate(Fate.DIED, -signal.SIGKILL)
        heir = consumer_of(live)
        again = claim(heir, 2, within_s=self.recovery_s)
        assert [(delivery.body, delivery.crashes) for delivery in again] == [(b"ran", 1), (b"held", 0)]
        if live.features.history:
            (incident,) = heir.history(again[0])
            assert incident.error is not None
            assert "SIGKILL" in incident.error.message

    def test_a_silent_parent_is_not_waited_for_long(self, live: Transport) -> None:
        """Whoever started a process lives and says nothing: what it held comes back all the same, and is charged."""
        self._needs_fork()
        needs_crashes(live)
        live.push(envelopes(b"1"))

        def work() -> None:
            consumer = consumer_of(live)
            board = consumer.board(1, parent_pid=os.getppid())
            board.cells[0] = claim_one(consumer).mark
            os.kill(os.getpid(), signal.SIGKILL)

        in_child(work, expected=-signal.SIGKILL)
        (again,) = claim(consumer_of(live), 1, within_s=self.recovery_s)
        assert (again.body, again.crashes) == (b"1", 1)

    def test_a_fork_does_not_write_for_its_parent(self, live: Transport) -> None:
        """A task's child clears no cell of its parent's, renews nothing and gives nothing back on its behalf."""
        self._needs_fork()
        needs_crashes(live)
        live.push(envelopes(b"1"))

        def work() -> None:
            consumer = consumer_of(live)
            board = consumer.board(1)
            board.cells[0] = claim_one(consumer).mark

            def meddle() -> None:
                board.cells[0] = 0
                board.write_fate(Fate.ENDED_ON_PURPOSE)
                consumer.extend()
                consumer.reap_soon()
                consumer.close()

            in_child(meddle)
            os.kill(os.getpid(), signal.SIGKILL)

        in_child(work, expected=-signal.SIGKILL)
        (again,) = claim(consumer_of(live), 1, within_s=self.recovery_s)
        assert (again.body, again.crashes) == (b"1", 1)


def in_child(work: Callable[[], object], *, expected: int = 0) -> None:
    """Runs ``work`` in a forked child that ends without any clean-up, and checks how it ended.

    Parameters:
      expected: The exit code, or the negative number of the signal that kills it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads: our very case
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(CHILD_LIMIT_S)
            work()
            code = 0
        except BaseException:  # noqa: BLE001  # whatever it was, this process must not run the rest of the tests
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == expected
