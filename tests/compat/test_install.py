"""Third-party code that imports dramatiq."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

THIRD_PARTY = """
import dramatiq
import dramatiq.brokers.stub
import dramatiq.actor
from dramatiq import Message, actor
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import current_millis
from dramatiq.middleware import Middleware, SkipMessage
from dramatiq.middleware.age_limit import AgeLimit

class Plugin(Middleware):
    def before_process_message(self, broker, message):
        if message.options.get("skip"):
            raise SkipMessage("skipped")
"""

PRELUDE = "import greenroom.compat; greenroom.compat.install()\n"


def run(program: str, folder: Path) -> None:
    """Runs a program that must end well."""
    (folder / "third_party.py").write_text(THIRD_PARTY)
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_third_party_code_finds_greenroom(tmp_path: Path) -> None:
    """Every submodule it imports is the very module of ours, and its middleware runs."""
    run(
        PRELUDE
        + """
import sys, third_party, greenroom, greenroom.brokers.stub
from greenroom.brokers.stub import StubBroker

assert third_party.dramatiq is greenroom
aliases = [name for name in sys.modules if name.startswith("dramatiq.")]
assert "dramatiq.brokers.stub" in aliases
for name in aliases:
    assert sys.modules[name] is sys.modules["greenroom" + name.removeprefix("dramatiq")], name
    assert sys.modules[name].__spec__.name.startswith("greenroom"), name

broker = StubBroker()
broker.add_middleware(third_party.Plugin())
greenroom.set_broker(broker)
done = []

@third_party.actor
def work(x):
    done.append(x)

work.send(1)
work.send_with_options(args=(2,), skip=True)
worker = greenroom.Worker(broker, worker_timeout=20)
worker.start()
broker.join("default", timeout=10_000)
worker.stop()
assert done == [1], done
""",
        tmp_path,
    )


def test_the_decorator_stays_the_decorator(tmp_path: Path) -> None:
    """``import dramatiq.actor`` does not put the module in the place of the function."""
    run(PRELUDE + "import dramatiq.actor\nassert callable(dramatiq.actor)\n", tmp_path)


def test_what_greenroom_does_not_have_is_not_found(tmp_path: Path) -> None:
    """A module that is not there is a ``ModuleNotFoundError``."""
    run(
        PRELUDE
        + """
try:
    import dramatiq.nothing_of_the_kind
except ModuleNotFoundError as e:
    assert e.name == "dramatiq.nothing_of_the_kind"
else:
    raise AssertionError
""",
        tmp_path,
    )


def test_the_real_one_is_not_replaced(tmp_path: Path) -> None:
    """Once it is imported, ``install`` refuses and says from where."""
    (tmp_path / "dramatiq.py").write_text("")
    run(
        """
import dramatiq, greenroom.compat
try:
    greenroom.compat.install()
except RuntimeError as e:
    assert "dramatiq.py" in str(e) and "before" in str(e), e
else:
    raise AssertionError
import sys
assert sys.modules["dramatiq"] is dramatiq
""",
        tmp_path,
    )


def test_it_comes_before_an_installed_one(tmp_path: Path) -> None:
    """A real Dramatiq that is installed but not imported yet stays unused, until ``uninstall``."""
    (tmp_path / "dramatiq.py").write_text("real = True")
    run(
        PRELUDE
        + """
import greenroom, dramatiq
assert dramatiq is greenroom
greenroom.compat.install()
greenroom.compat.uninstall()
import dramatiq
assert dramatiq.real
greenroom.compat.uninstall()
""",
        tmp_path,
    )


@pytest.mark.parametrize("name", ["greenroom", "dramatiq"])
def test_a_program_runs_under_both_names(tmp_path: Path, name: str) -> None:
    """The same program, its import changed or the alias installed."""
    program = """
import NAME as dramatiq
from NAME.brokers.stub import StubBroker
from NAME.middleware import CurrentMessage

broker = StubBroker()
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)
done = []

@dramatiq.actor(max_retries=0)
def add(x, y):
    done.append((CurrentMessage.get_current_message().actor_name, x + y))

class Double(dramatiq.GenericActor):
    class Meta:
        queue_name = "doubles"
    def perform(self, x):
        add.send(x, x)

Double.send(4)
worker = dramatiq.Worker(broker, worker_timeout=20)
worker.start()
broker.join("doubles", timeout=10_000)
broker.join("default", timeout=10_000)
worker.stop()
assert done == [("add", 8)], done
"""
    run((PRELUDE if name == "dramatiq" else "") + program.replace("NAME", name), tmp_path)
