"""The pytest plugin, run on small test files of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from greenroom import broker as brokers
from greenroom.brokers.stub import StubBroker
from greenroom.testing import InlineBroker, ManualClock, assert_enqueued, use_broker
from greenroom.worker import Worker

#: Loaded before the inner sessions, which forget whatever they are the first to import.
LOADED = (InlineBroker, ManualClock, StubBroker, Worker, assert_enqueued, use_broker)

pytest_plugins = ["pytester"]

ACTORS = """
    import greenroom

    done = []

    @greenroom.actor
    def put(*x):
        done.append(x[-1])

    @greenroom.actor
    def fail():
        raise ValueError("boom")

    @greenroom.actor(on_success="put")
    def first(x):
        return x
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with a module of actors that name no broker."""
    monkeypatch.setattr(brokers, "global_broker", None)
    monkeypatch.setattr(brokers, "_undeclared", [])
    pytester.makepyfile(actors=ACTORS)
    pytester.syspathinsert()
    return pytester


def run(project: pytest.Pytester, test_file: str, *arguments: str) -> pytest.RunResult:
    project.makepyfile(test_file)
    return project.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest", *arguments)


def test_broker_and_worker(project: pytest.Pytester) -> None:
    """Actors declared at import are usable in every test, each with a broker of its own."""
    result = run(
        project,
        """
        import pytest
        from actors import done, put, fail, first
        from greenroom import get_broker
        from greenroom.testing import assert_enqueued, refute_enqueued

        @pytest.mark.parametrize("x", [1, 2])
        def test_put(greenroom_broker, greenroom_worker, x):
            assert get_broker() is greenroom_broker
            put.send(x)
            greenroom_broker.join("default", timeout=5000)
            assert done[-1] == x
            assert_enqueued(put, args=(x,), count=1)

        def test_callbacks_by_name(greenroom_broker, greenroom_worker):
            first.send(3)  # sends `put` by its name
            greenroom_broker.join("default", timeout=5000)
            greenroom_worker.join()
            assert done[-1] == 3
            refute_enqueued(fail)

        def test_a_failure_comes_up(greenroom_broker, greenroom_worker):
            fail.send()
            with pytest.raises(ValueError, match="boom"):
                greenroom_broker.join("default")  # there are no retries to wait for

        def test_no_worker(greenroom_broker):
            put.send(1)
            assert greenroom_broker.queues["default"].qsize() == 1
            assert len(greenroom_worker_names()) == 0

        def greenroom_worker_names():
            import threading
            return [t.name for t in threading.enumerate() if t.name == "pump"]
        """,
    )
    result.assert_outcomes(passed=5)


def test_what_was_before_is_there_again(project: pytest.Pytester) -> None:
    """The program's own default broker is untouched, and back after the test; its actors are usable in the test."""
    result = run(
        project,
        """
        import pytest
        import greenroom
        from greenroom.brokers.stub import StubBroker

        own = StubBroker()
        greenroom.set_broker(own)

        @greenroom.actor
        def put(): ...

        def test_with(greenroom_broker):
            assert greenroom.get_broker() is not own
            put.send()
            assert greenroom_broker.queues["default"].qsize() == 1

        def test_without():
            assert greenroom.get_broker() is own
            assert own.queues["default"].qsize() == 0

        def test_at_the_end(request):
            import greenroom.broker
            greenroom.broker.global_broker = None
        """,
    )
    result.assert_outcomes(passed=3)


def test_a_stalled_test_fails_with_the_reason(project: pytest.Pytester) -> None:
    """A test that would hang fails at once; the log shows the failed attempt and when the next one is due."""
    result = run(
        project,
        """
        import pytest
        from actors import fail

        @pytest.mark.greenroom(retries=3)
        def test_hang(greenroom_broker, greenroom_worker):
            fail.send()
            greenroom_broker.join("default", timeout=5000)
        """,
        "--log-cli-level=warning",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "WARNING *Attempt 1 of message fail() failed with ValueError: boom. The next one is due in *",
            "E *QueueStalled: Joining queue 'default' would never end: nothing runs, and the next attempt is due in *",
            "E *fail() [[]*]: 0 retries so far, retry 1 due in *, last failed with ValueError: boom",
        ]
    )


def test_the_clock(project: pytest.Pytester) -> None:
    """Asking for the clock puts broker and worker on it, in whatever order they are asked for."""
    result = run(
        project,
        """
        import pytest
        from actors import fail, put, done

        @pytest.mark.greenroom(retries=20)
        def test_retries(greenroom_worker, greenroom_clock):
            fail.send()
            assert greenroom_clock.tick("45 days") == 21

        @pytest.fixture
        def clock(greenroom_clock):
            return greenroom_clock

        def test_through_another_fixture(greenroom_broker, greenroom_worker, clock):
            put.send_with_options(args=(1,), delay=3_600_000)
            assert clock.tick("59m") == 0
            assert clock.tick("1m") == 1

        def test_a_clock_alone(greenroom_clock):
            assert greenroom_clock.tick("1 day") == 0
        """,
        "--durations=0",
    )
    result.assert_outcomes(passed=3)


def test_inline(project: pytest.Pytester) -> None:
    """With ``inline=True`` messages run where they are sent; a worker makes no sense there, and is refused."""
    result = run(
        project,
        """
        import pytest
        from actors import fail, put, done

        pytestmark = pytest.mark.greenroom(inline=True)

        def test_put(greenroom_broker):
            put.send(7)
            assert done == [7]
            with pytest.raises(ValueError):
                fail.send()

        @pytest.mark.greenroom(fail_fast=False)
        def test_nearest_marker_wins(greenroom_broker):
            fail.send()
            assert len(greenroom_broker.dead_letters) == 1

        def test_worker(greenroom_worker): ...
        """,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*messages run where they are sent: use no worker*"])


def test_the_marker(project: pytest.Pytester) -> None:
    """``strict`` and ``fail_fast`` reach the broker; a misspelt option is an error that says what there is."""
    result = run(
        project,
        """
        import pytest
        from actors import fail, put

        @pytest.mark.greenroom(strict=True)
        def test_strict(greenroom_broker):
            with pytest.raises(ValueError, match="Unknown option 'time_limt'"):
                put.send_with_options(args=(1,), time_limt=5)

        @pytest.mark.greenroom(fail_fast=False)
        def test_slow(greenroom_broker, greenroom_worker):
            fail.send()
            greenroom_broker.join("default")

        @pytest.mark.greenroom(retrys=3)
        def test_misspelt(greenroom_broker): ...

        @pytest.mark.greenroom(3)
        def test_positional(greenroom_broker): ...
        """,
        "--strict-markers",
    )
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*@pytest.mark.greenroom: unknown: retrys. Known are retries, fail_fast, inline, strict.",
            "*@pytest.mark.greenroom: it takes keywords only.*",
        ]
    )


def test_middleware_of_ones_own(project: pytest.Pytester) -> None:
    """A project overrides ``greenroom_middleware`` to add its own."""
    project.makeconftest(
        """
        import pytest
        import greenroom

        class Own(greenroom.Middleware):
            seen = []
            def after_process_boot(self, broker):
                self.seen.append("boot")
            def before_enqueue(self, broker, message, delay):
                self.seen.append(message.actor_name)

        @pytest.fixture
        def greenroom_middleware():
            return [Own()]
        """
    )
    result = run(
        project,
        """
        from actors import put

        def test_own(greenroom_broker):
            put.send(1)
            assert greenroom_broker.middleware[-1].seen == ["boot", "put"]
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_failed_assertion_points_at_the_test(project: pytest.Pytester) -> None:
    """The report shows the line of the test, and what was enqueued, not the inside of the helper."""
    result = run(
        project,
        """
        from actors import put
        from greenroom.testing import assert_enqueued

        def test_put(greenroom_broker):
            put.send(1)
            assert_enqueued(put, args=(2,))
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*assert_enqueued(put, args=(2,))",
            "E*no message put(2, ...) was enqueued.",
            "E*put(1) in queue 'default', without delay   <- other args",
        ]
    )
    result.stdout.no_fnmatch_line("*assertions.py*")


def test_nothing_is_imported_until_a_fixture_is_used(tmp_path: Path) -> None:
    """A test session that uses no fixture loads no more of Greenroom than ``import greenroom`` itself does: no worker,
    no engine, no broker."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    loaded = {name for name in sys.modules if name.startswith('greenroom')}\n"
        "    import greenroom\n"
        "    print('LOADED', *sorted(loaded))\n"
    )
    loaded = _printed(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", "-sq", "test_it.py")
    front_door = _printed(
        tmp_path,
        "-c",
        "import sys, greenroom; print('LOADED', *sorted(n for n in sys.modules if n.startswith('greenroom')))",
    )
    assert loaded - front_door == {"greenroom.testing", "greenroom.testing.plugin"}


def _printed(folder: Path, *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return set(line.split()[1:])
