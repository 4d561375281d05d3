"""Rules of the house that no linter knows. Each reads the source as a syntax tree."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "greenroom"
CLOCKS = frozenset({"time.time", "time.time_ns", "time.sleep", "datetime.datetime.now", "datetime.datetime.utcnow"})
STOPWATCHES = frozenset({"time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns"})
OPENERS = frozenset({"open", "io.open", "os.open", "shutil.copyfile", "shutil.copy"})
OPENING_METHODS = frozenset({"open", "read_bytes", "read_text", "write_bytes", "write_text"})

#: Where elapsed time may be measured without the injected clock, and why.
MAY_MEASURE = {
    "clock.py": "it is the clock",
    "actor.py": "the duration that a call of an actor logs",
    "common.py": "join_all is Dramatiq's helper, and real threads are joined in real time",
    "worker.py": "how long stopping may take is real time",
    "runtime/": "waits on threads and processes end by real time",
    "engines/": "busy loops and waits for other processes end by real time",
    "cli/": "grace periods of real processes",
    "testing/": "deadlines of tests",
}

#: Modules of the SQLite engine that may open a file by hand, and which. Never the database, its -wal or its -shm:
#: closing such a file drops SQLite's locks, and another process may then delete commits.
MAY_OPEN = {
    "engines/sqlite/inheritance.py": "the database, in a child that has no lock of its own on it yet",
    "engines/sqlite/mounts.py": "the system's list of mounts",
    "engines/sqlite/pages.py": "private copies",
    "engines/sqlite/recover.py": "a damaged file, in a command of its own, to copy it",
    "engines/sqlite/bell.py": "the FIFOs of those who watch keys, and their board",
    "engines/sqlite/wake.py": "the FIFOs and their board",
}
#: With this flag only a file is opened that was not there, so that no connection to it can exist.
HARMLESS_FLAG = "os.O_EXCL"

#: Modules that are longer than 400 lines, and why that is easier to read.
MAY_BE_LONG = {
    "broker.py": "Broker, get_broker and set_broker are where Dramatiq has them",
    "engines/memory/transport.py": "transport and consumer share one state under one lock",
}


def modules(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder).as_posix(), ast.parse(path.read_text("utf-8"), str(path))


def names_of_imports(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: ``{"time": "time", "monotonic": "time.monotonic"}``."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every dotted name that is used, with imports resolved, and its line."""
    imported = names_of_imports(tree)

    def dotted(node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = dotted(node.value)
            return f"{owner}.{node.attr}" if owner else None
        return None

    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = dotted(node)
            if name:
                yield node.lineno, name


def offenders(is_forbidden: Callable[[str], bool], allowed: tuple[str, ...], folder: Path = SOURCE) -> list[str]:
    return [
        f"{module}:{line} {name}"
        for module, tree in modules(folder)
        if not module.startswith(allowed)
        for line, name in uses(tree)
        if is_forbidden(name)
    ]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import time\ntime.sleep(1)", "time.sleep"),
        ("from time import sleep as nap\nnap(1)", "time.sleep"),
        ("import time as t\nt.time()", "time.time"),
        ("from datetime import datetime\ndatetime.now()", "datetime.datetime.now"),
        ("import os\nos.environ['X']", "os.environ"),
        ("from os import environ\nenviron", "os.environ"),
    ],
)
def test_a_use_is_seen_through_its_import(code: str, name: str) -> None:
    """However a forbidden name was imported, the guards below see it."""
    assert name in [used for _, used in uses(ast.parse(code))]


def test_only_settings_reads_the_environment() -> None:
    """``os.environ`` and ``os.getenv`` are used in ``settings.py`` alone."""
    forbidden = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv"}
    assert offenders(forbidden.__contains__, ("settings.py",)) == []


def test_only_the_clock_reads_the_wall_clock_and_sleeps() -> None:
    """``time.time``, ``datetime.now`` and ``time.sleep`` are used in ``clock.py`` alone: the rest is handed a clock."""
    assert offenders(CLOCKS.__contains__, ("clock.py",)) == []


def test_elapsed_time_is_measured_where_there_is_a_reason() -> None:
    """``time.monotonic`` and its like are used only where the table above gives a reason."""
    assert offenders(STOPWATCHES.__contains__, tuple(MAY_MEASURE)) == []


def test_the_sqlite_engine_opens_no_database_by_hand() -> None:
    """Files are opened only by the modules of the table above, so never a database beside SQLite's own descriptors."""
    engine = ((module, tree) for module, tree in modules(SOURCE) if module.startswith(("engines/sqlite/", "brokers/")))
    found = [
        f"{module}:{call.lineno} {ast.unparse(call)}"
        for module, tree in engine
        if module not in MAY_OPEN
        for call in calls_that_open(tree)
        if HARMLESS_FLAG not in ast.unparse(call)
    ]
    assert found == []


def calls_that_open(tree: ast.Module) -> Iterator[ast.Call]:
    imported = names_of_imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and opens_a_file(node.func, imported):
            yield node


def opens_a_file(function: ast.expr, imported: dict[str, str]) -> bool:
    if isinstance(function, ast.Name):
        return imported.get(function.id, function.id) in OPENERS
    if not isinstance(function, ast.Attribute):
        return False
    if ast.unparse(function).startswith("files(__package__)"):
        return False  # data of the package: schema.sql
    if isinstance(function.value, ast.Name):
        owner = imported.get(function.value.id)
        if owner is not None and f"{owner}.{function.attr}" in OPENERS:
            return True
    return function.attr in OPENING_METHODS


def test_no_test_sleeps() -> None:
    """Tests wait for conditions with a deadline, never for time to pass. To sleep for 0 s is to let others run."""
    allowed = {"runtime/test_loop.py": 1}  # an actor there sleeps, because what is shown is that many can
    found = Counter(
        module
        for module, tree in modules(ROOT / "tests")
        for imported in (names_of_imports(tree),)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and is_a_sleep(node, imported)
    )
    assert found == allowed


def is_a_sleep(call: ast.Call, imported: dict[str, str]) -> bool:
    name, _, attribute = ast.unparse(call.func).partition(".")
    full_name = ".".join(filter(None, (imported.get(name, name), attribute)))
    lets_others_run = [ast.unparse(argument) for argument in call.args] == ["0"]
    return full_name in ("time.sleep", "asyncio.sleep") and not lets_others_run


@pytest.mark.parametrize(
    ("code", "sleeps"),
    [
        ("import time\ntime.sleep(1)", True),
        ("from time import sleep as nap\nnap(1)", True),
        ("import asyncio\nasyncio.sleep(0.1)", True),
        ("import asyncio\nasyncio.sleep(0)", False),
        ("event.wait(1)", False),
    ],
)
def test_a_sleep_is_seen(code: str, *, sleeps: bool) -> None:
    """However it was imported, the guard above sees a sleep."""
    tree = ast.parse(code)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [is_a_sleep(call, names_of_imports(tree)) for call in calls] == [sleeps]


def test_every_test_says_in_english_what_it_shows() -> None:
    """Each test has a docstring that states the behaviour."""
    silent = [
        f"{module}:{node.lineno} {node.name}"
        for module, tree in modules(ROOT / "tests")
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_every_exemption_has_a_reason() -> None:
    """``noqa`` and ``type: ignore`` name a code and are followed by a reason."""
    exemption = re.compile(r"#\s*(noqa|type:\s*ignore)\b(?P<rest>.*)")
    with_reason = re.compile(r"(:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*|\[[a-z-]+(,\s*[a-z-]+)*\])\s+#\s*\w.*")
    bare = []
    for folder in ("src", "tests", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                found = exemption.search(line)
                if found and path != Path(__file__) and not with_reason.fullmatch(found["rest"]):
                    bare.append(f"{path.relative_to(ROOT).as_posix()}:{number} {found[0]}")
    assert bare == []


def test_files_stay_short() -> None:
    """No file of the package is longer than 400 lines, unless the table above has a reason."""
    sizes = {
        path.relative_to(SOURCE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in SOURCE.rglob("*.py")
    }
    assert {module: size for module, size in sizes.items() if size > 400 and module not in MAY_BE_LONG} == {}


def test_placeholders_of_sql_are_not_numbered() -> None:
    """From Python 3.12 on sqlite3 warns of ``?1`` with a sequence of values, and 3.14 refuses it."""
    engines = sorted((SOURCE / "engines").rglob("*.py"))
    assert [path.name for path in engines if re.search(r"\?[1-9]", path.read_text("utf-8"))] == []
