"""Which broker a command looks at, and how it is opened: never made by looking."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..broker import Broker, get_broker
from ..brokers import from_url
from ..brokers.engine import EngineBroker
from ..errors import BrokerError
from ..logging import one_line
from ..runtime.application import ApplicationError, load_broker
from ..runtime.exit_codes import ExitCode
from .parsing import Parser, tell

Act = Callable[[argparse.Namespace, EngineBroker], int]


class CommandError(Exception):
    """Raised when a command cannot do what it was asked for; the text is one line for the user."""

    def __init__(self, line: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(line)
        self.code = code


def add_broker_options(parser: Parser) -> None:
    """Adds what says which broker is meant, and ``--json``."""
    group = parser.add_argument_group("which broker")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--broker",
        metavar="MODULE[:BROKER]",
        help="that of a program, named as for greenroom worker; its actors and its encoder are known then",
    )
    which.add_argument(
        "--url",
        metavar="URL",
        help="as in sqlite:///queue.db (default: GREENROOM_URL, or else the file .greenroom/queue.db)",
    )
    group.add_argument("-P", "--path", metavar="DIR", action="append", help="folders to import from (default: .)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run_with_broker(parser: Parser, words: Sequence[str], act: Act) -> int:
    """Parses ``words``, opens the broker and calls ``act``; returns the exit code, and tells what went wrong."""
    arguments = parser.parse_args(words)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a message may hold what the terminal has no letters for
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _opened(arguments) as broker:
            code = act(arguments, broker)
        sys.stdout.flush()
        return code
    except CommandError as e:
        tell([one_line(e)])
        return e.code
    except (ApplicationError, BrokerError) as e:
        return _explained(e)
    except KeyboardInterrupt:
        tell(["interrupted"])
        return ExitCode.KILLED
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.KILLED


def know_queues(broker: EngineBroker, queues: Iterable[str] = ()) -> None:
    """Makes queues known to a broker that cannot list those that there are: RabbitMQ does not tell.

    Raises:
      CommandError: If it cannot, and neither a program nor the user names one.
    """
    if broker.transport.features.lists_queues:
        return
    for queue in queues:
        broker.declare_queue(queue)
    if not broker.get_declared_queues():
        raise CommandError(
            f"{broker!r} does not tell which queues there are: name them, or the program that has them (--broker)"
        )


def _explained(error: Exception) -> int:
    from ..runtime.child import explain

    failure = explain(error)
    sys.stderr.write(failure.traceback)
    tell([failure.line])
    return failure.code


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[EngineBroker]:
    with contextlib.redirect_stdout(sys.stderr):  # what a program prints when it is imported is not our output
        broker = _find(arguments)
    if not isinstance(broker, EngineBroker):
        raise CommandError(f"{broker!r} cannot be looked into: it is not a broker on an engine of Greenroom's")
    if not broker.exists():
        raise CommandError(
            f"there is nothing at {broker!r} yet: nothing was ever sent there. "
            "Is it the right place? --broker, --url or GREENROOM_URL name another",
            ExitCode.UNREACHABLE,
        )
    try:
        yield broker
    finally:
        broker.close()


def _find(arguments: argparse.Namespace) -> Broker:
    try:
        if arguments.broker:
            return load_broker([arguments.broker], arguments.path or ["."])
        return from_url(arguments.url) if arguments.url else get_broker()
    except (ImportError, ValueError) as e:
        raise CommandError(one_line(e)) from None
