"""``greenroom check``: finds out whether a program could run, and as what; starts nothing and makes no file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from platform import python_version
from typing import Any

from .. import __version__
from ..broker import Broker
from ..brokers.engine import EngineBroker
from ..errors import BrokerError
from ..logging import one_line
from ..runtime import watch
from ..runtime.application import ApplicationError, load_broker, load_function, names_of_forks
from ..runtime.child import explain
from ..runtime.exit_codes import ExitCode
from ..runtime.processes import default_start_method
from ..runtime.reports import Failure
from ..settings import Settings, SettingsError, did_you_mean
from ..worker import DEFAULT_WORKER_TIMEOUT_MS
from .parsing import Parser, tell
from .tables import Column, print_json, print_table
from .worker import add_options


def parser() -> Parser:
    """What ``greenroom check`` takes."""
    parser = Parser(
        prog="greenroom check",
        description="Imports a program as a worker does, checks its settings, its broker and what its actors say, and "
        "shows what would run. Starts nothing and makes no file. Takes the words of greenroom worker, so that the very "
        "command that is to be deployed can be checked.",
        examples=("greenroom check app", "greenroom check app -p 4 -Q mail", "greenroom check app --json"),
    )
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    return parser


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    given = vars(parser().parse_intermixed_args(words))
    as_json = given.pop("json")
    sys.dont_write_bytecode = True  # no file at all
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a program prints when it is imported is not our output
            document = check(Settings.load(given))
    except SettingsError as e:
        return _failed(Failure(ExitCode.USAGE, ""), e.errors, as_json=as_json)
    except (ApplicationError, BrokerError) as e:
        failure = explain(e)
        return _failed(failure, [failure.line], as_json=as_json)
    if as_json:
        print_json({"ok": True, **document})
    else:
        _print(document)
    return ExitCode.OK


def check(settings: Settings) -> dict[str, Any]:
    """What would run: a document that JSON has a form for.

    Raises:
      SettingsError: If a file or an extra that the settings ask for cannot be had.
      ApplicationError: If the modules, the broker or a fork function cannot be loaded.
      BrokerError: If the broker cannot be used.
    """
    _check_surroundings(settings)
    broker = load_broker(settings.modules, settings.path)
    for name in settings.fork_functions:
        load_function(name)
    queues = sorted(broker.get_declared_queues())
    return {
        "greenroom": __version__,
        "python": python_version(),
        "settings": _effective(settings),
        "broker": {"repr": one_line(repr(broker)), **_store(broker)},
        "middleware": [type(middleware).__name__ for middleware in broker.middleware],
        "queues": queues,
        "actors": [_actor(broker.actors[name]) for name in sorted(broker.actors)],
        "fork_functions": [*settings.fork_functions, *names_of_forks(broker)],
        "warnings": _warnings(settings, broker, queues),
    }


def _check_surroundings(settings: Settings) -> None:
    errors = []
    if settings.watch is not None and not watch.is_available():
        errors.append(watch.MISSING)
    for label, path in (("--log-file", settings.log_file), ("--pid-file", settings.pid_file)):
        if path is not None and not _could_write(path):
            errors.append(f"{label}: {path!r} cannot be written")
    if errors:
        raise SettingsError(errors)


def _could_write(path: str) -> bool:
    if os.path.exists(path):
        return os.access(path, os.W_OK) and not os.path.isdir(path)
    return os.access(os.path.dirname(os.path.abspath(path)), os.W_OK | os.X_OK)


def _effective(settings: Settings) -> dict[str, Any]:
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    values["start_method"] = settings.start_method or default_start_method()
    values["worker_timeout_ms"] = settings.worker_timeout_ms or DEFAULT_WORKER_TIMEOUT_MS
    values["path"] = [os.path.abspath(folder) for folder in settings.path]
    return values


def _store(broker: Broker) -> dict[str, object]:
    if not isinstance(broker, EngineBroker):
        return {"looked at": "no: it is not a broker on an engine of Greenroom's"}
    inspected: dict[str, object] = broker.transport.inspect()
    return inspected


def _actor(actor: Any) -> dict[str, Any]:
    return {
        "name": actor.actor_name,
        "queue": actor.queue_name,
        "priority": actor.priority,
        "async": actor.is_async,
        "options": {name: one_line(repr(value), 80) for name, value in sorted(actor.options.items())},
    }


def _warnings(settings: Settings, broker: Broker, queues: Sequence[str]) -> list[str]:
    warnings = [
        f"no actor uses queue {queue!r}{did_you_mean(queue, queues)}"
        for queue in settings.queues or ()
        if queue not in queues
    ]
    if not broker.actors:
        warnings.append("the modules declare no actors of this broker: a worker would have nothing to do")
    return warnings


def _failed(failure: Failure, lines: Sequence[str], *, as_json: bool) -> int:
    if as_json:
        print_json({"ok": False, "code": failure.code, "errors": list(lines), "traceback": failure.traceback})
    sys.stderr.write(failure.traceback)
    tell(lines)
    return failure.code


# --- for people


def _print(document: dict[str, Any]) -> None:
    print(f"Greenroom {document['greenroom']}, Python {document['python']}")
    _print_facts("settings", document["settings"])
    _print_facts("broker", document["broker"])
    print(f"\nmiddleware\n  {', '.join(document['middleware']) or 'none'}")
    if document["fork_functions"]:
        print(f"\nfork functions\n  {', '.join(document['fork_functions'])}")
    print()
    columns = [Column("ACTOR"), Column("QUEUE"), Column("PRIORITY", is_number=True), Column("RUNS"), Column("OPTIONS")]
    print_table(columns, [_row(actor) for actor in document["actors"]])
    print()
    for warning in document["warnings"]:
        print(f"greenroom: warning: {warning}", file=sys.stderr)
    print("All is well. Nothing was started." if not document["warnings"] else "It could run. Nothing was started.")


def _print_facts(title: str, facts: dict[str, Any]) -> None:
    print(f"\n{title}")
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"  {name.replace('_', ' '):<{width}}  {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return one_line(" ".join(map(str, value))) or "-"
    return "-" if value is None else one_line(value)


def _row(actor: dict[str, Any]) -> tuple[object, ...]:
    options = " ".join(f"{name}={value}" for name, value in actor["options"].items())
    return actor["name"], actor["queue"], actor["priority"], "on the loop" if actor["async"] else "on threads", options
