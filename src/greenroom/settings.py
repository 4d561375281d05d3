"""The only module that reads the environment, and only when asked.

``GREENROOM_URL`` names the default broker. Every variable that Dramatiq calls ``dramatiq_x`` is also read as
``greenroom_x``, which wins. ``Settings`` is what a worker program was told, checked as a whole.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .names import check_queue_name, q_name

#: The variable that names the broker ``get_broker()`` builds when none was set.
URL_VARIABLE = "GREENROOM_URL"

#: The variable that names the folder in which processes of this host see who is alive.
RUN_FOLDER_VARIABLE = "GREENROOM_RUN_FOLDER"

_MACHINERY = (URL_VARIABLE, RUN_FOLDER_VARIABLE, "GREENROOM_FAILPOINTS", "GREENROOM_CLOCK_OFFSET_FILE")
_NUMBERS = (
    "worker_timeout",
    "restart_delay",
    "queue_prefetch",
    "delay_queue_prefetch",
    "dead_message_ttl",
    "lua_max_stack",
    "group_callback_barrier_ttl",
    "prom_port",
)
_TEXTS = ("prom_db", "prom_host")
_START_METHODS = ("fork", "spawn", "forkserver")
_KNOWN_VARIABLES = (*_MACHINERY, *(f"greenroom_{name}" for name in (*_NUMBERS, *_TEXTS)))


def getenv(name: str) -> str | None:
    """The variable ``name``; for ``dramatiq_x`` (any case) ``greenroom_x`` is looked at first. Empty is unset."""
    for candidate in _aliases(name):
        value = os.environ.get(candidate)
        if value:
            return value
    return None


def getenv_int(name: str, default: int | None = None) -> int | None:
    """The variable ``name`` as an integer.

    Raises:
      ValueError: If it is set to something else; the text names the variable and the value.
    """
    for candidate in _aliases(name):
        value = os.environ.get(candidate)
        if value:
            try:
                return int(value)
            except ValueError:
                raise ValueError(f"invalid integer value for env var {candidate!r}: {value!r}") from None
    return default


def setenv_default(name: str, value: str) -> str:
    """Sets a variable that a library of others reads, unless it is set; returns what it is then."""
    return os.environ.setdefault(name, value)


def broker_url() -> str | None:
    """The URL of the default broker, or None."""
    return os.environ.get(URL_VARIABLE) or None


def run_folder() -> str | None:
    """The folder in which processes of this host see who is alive (``GREENROOM_RUN_FOLDER``), or None."""
    return os.environ.get(RUN_FOLDER_VARIABLE) or None


def runtime_dir() -> str | None:
    """The system's folder for what lives as long as the user's session (``XDG_RUNTIME_DIR``), or None."""
    return os.environ.get("XDG_RUNTIME_DIR") or None


def failpoints() -> str:
    """Test builds: which failpoints are armed (``GREENROOM_FAILPOINTS``)."""
    return os.environ.get("GREENROOM_FAILPOINTS", "")


def _aliases(name: str) -> tuple[str, ...]:
    prefix, _, rest = name.partition("_")
    if prefix.lower() == "dramatiq":
        ours = "greenroom" if prefix.islower() else "GREENROOM"
        return (f"{ours}_{rest}", name)
    return (name,)


class SettingsError(ValueError):
    """Raised when settings are wrong; ``errors`` holds one line for each mistake."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a worker program was told. Build it with ``load``, which checks it."""

    #: Modules to import; the first may name a broker: ``app``, ``app:broker``, ``app.queues:main.broker``.
    modules: tuple[str, ...]
    #: Worker processes; as many as this process may use CPUs if not given.
    processes: int
    #: Threads of each process.
    threads: int = 8
    #: Async actors that each process runs at a time.
    concurrency: int = 100
    #: Folders put in front of ``sys.path``, one after the other, so that the last is searched first.
    path: tuple[str, ...] = (".",)
    #: The only queues to consume; all if None.
    queues: tuple[str, ...] | None = None
    #: The file that log lines are appended to; standard error if None.
    log_file: str | None = None
    #: Leave logging and the children's output as they are.
    skip_logging: bool = False
    #: The file that holds the process id while the program runs; none if None.
    pid_file: str | None = None
    #: Start children with a fresh interpreter instead of a fork: the same as ``start_method="spawn"``.
    use_spawn: bool = False
    #: How children are started: ``fork``, ``spawn`` or ``forkserver``; what suits the platform if None.
    start_method: str | None = None
    #: How long a child may take to become ready before it is killed and another is started.
    worker_boot_timeout_ms: int = 60_000
    #: How long running tasks may go on after a stop was asked for.
    worker_shutdown_timeout_ms: int = 600_000
    #: A child that shows no sign of life for so long is killed; never if None.
    hang_timeout_ms: int | None = None
    #: A child that has run so many messages gets a successor; never if None.
    max_tasks_per_child: int | None = None
    #: A child that holds so much memory, in MiB, gets a successor; never if None.
    max_rss_per_child_mib: int | None = None
    #: Functions that run in processes of their own beside the workers: ``module:function``.
    fork_functions: tuple[str, ...] = ()
    #: How long the workers may take to start before the fork functions are started all the same.
    worker_fork_timeout_ms: int = 30_000
    #: The folder whose changes restart the workers; none if None.
    watch: str | None = None
    #: Look at the files again and again instead of being told by the operating system.
    watch_use_polling: bool = False
    #: Which files of ``watch`` count: those that match a pattern of the first, and none of the second.
    watch_include: tuple[str, ...] = ("**.py",)
    watch_exclude: tuple[str, ...] = ()
    #: How long a worker waits for messages at most, before it looks again; the worker's own default if None.
    worker_timeout_ms: int | None = None
    #: 1 or more: log at DEBUG.
    verbose: int = 0

    @classmethod
    def load(cls, args: Mapping[str, object], env: Mapping[str, str] | None = None) -> Settings:
        """Builds settings out of ``args`` (field name -> value, None: not given), then ``env``, then defaults.

        Parameters:
          args: Values may be text, as they come from a command line.
          env: The environment; this process's if None.

        Raises:
          SettingsError: With everything that is wrong, not only the first mistake.
        """
        env = os.environ if env is None else env
        errors: list[str] = []
        values: dict[str, Any] = {"processes": _usable_cpus(), **_from_environment(env, errors)}
        for key, value in args.items():
            if key not in _CHECKS:
                errors.append(f"unknown setting {key!r}{did_you_mean(key, _CHECKS)}")
            elif value is not None:
                _collect(values, errors, key, value)
        if values.get("use_spawn") and values.setdefault("start_method", "spawn") != "spawn":
            errors.append(f"--use-spawn contradicts --start-method {values['start_method']}")
        if not args.get("modules"):
            errors.append("no MODULE given: name the module that declares your actors")
        if errors:
            raise SettingsError(errors)
        return cls(**values)


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``"; did you mean 'x'?"`` for the known word nearest to ``word``, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def _collect(values: dict[str, Any], errors: list[str], key: str, value: object) -> None:
    label, check = _CHECKS[key]
    try:
        values[key] = check(value)
    except ValueError as e:
        errors.append(f"{label}: {e}")


def _from_environment(env: Mapping[str, str], errors: list[str]) -> dict[str, int]:
    values: dict[str, int] = {}
    for name in _NUMBERS:
        for variable in reversed(_aliases(f"dramatiq_{name}")):
            if env.get(variable):
                try:
                    values[name] = _at_least(0)(env[variable])
                except ValueError as e:
                    errors.append(f"environment variable {variable}: {e}")
    errors.extend(_misspelt_variables(env))
    return {"worker_timeout_ms": values["worker_timeout"]} if "worker_timeout" in values else {}


def _misspelt_variables(env: Mapping[str, str]) -> list[str]:
    # Only what is near a variable of ours: others may share the prefix (Kubernetes sets GREENROOM_SERVICE_HOST for a
    # service of that name).
    known = {name.lower(): name for name in _KNOWN_VARIABLES}
    errors = []
    for variable in env:
        if variable.lower().startswith("greenroom_") and variable not in _KNOWN_VARIABLES:
            near = difflib.get_close_matches(variable.lower(), list(known), n=1, cutoff=0.9)
            if near:
                errors.append(f"unknown environment variable {variable}; did you mean {known[near[0]]}?")
    return errors


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _at_least(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = least - 1
        if number < least or isinstance(value, (bool, float)):
            raise ValueError(f"must be a whole number of at least {least}, not {value!r}")
        return number

    return check


def _modules(value: Any) -> tuple[str, ...]:
    names = tuple(value)
    for position, name in enumerate(names):
        module, colon, attribute = name.partition(":")
        if colon and position:
            raise ValueError(f"only the first module may name a broker, not {name!r}")
        if "/" in module or os.sep in module:
            raise ValueError(f"{name!r} is a path; give the name of a module, as in an import statement")
        if not all(module.split(".")):
            raise ValueError(f"{name!r} names no module")
        if colon and not all(attribute.split(".")):
            raise ValueError(f"{name!r} names no variable after the colon")
    return names


def _queues(value: Any) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(q_name(check_queue_name(name)) for name in value)) or None


def _between(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        number = _at_least(least)(value)
        if number > most:
            raise ValueError(f"must be at most {most}, not {value!r}")
        return number

    return check


def _start_method(value: Any) -> str:
    if value not in _START_METHODS:
        raise ValueError(f"must be one of {', '.join(_START_METHODS)}, not {value!r}")
    return str(value)


def _functions(value: Any) -> tuple[str, ...]:
    names = _texts(value)
    for name in names:
        module, _, function = name.partition(":")
        if not all([*module.split("."), *function.split(".")]):
            raise ValueError(f"{name!r} names no function; write module:function")
    return names


def _folder(value: Any) -> str:
    if not os.path.isdir(value):
        raise ValueError(f"{value!r} is not a folder")
    return str(value)


def _patterns_with_python(value: Any) -> tuple[str, ...]:
    return ("**.py", *_texts(value))


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value)


def _text(value: Any) -> str:
    if not value:
        raise ValueError("must not be empty")
    return str(value)


#: For each setting, what the user knows it as and how it is checked.
_CHECKS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "modules": ("MODULE", _modules),
    "processes": ("-p/--processes", _at_least(1)),
    "threads": ("-t/--threads", _at_least(1)),
    "concurrency": ("--concurrency", _at_least(1)),
    "path": ("-P/--path", _texts),
    "queues": ("-Q/--queues", _queues),
    "log_file": ("--log-file", _text),
    "skip_logging": ("--skip-logging", bool),
    "pid_file": ("--pid-file", _text),
    "use_spawn": ("--use-spawn", bool),
    "start_method": ("--start-method", _start_method),
    "worker_boot_timeout_ms": ("--worker-boot-timeout", _at_least(1)),
    "fork_functions": ("-f/--fork-function", _functions),
    "worker_fork_timeout_ms": ("--worker-fork-timeout", _between(10, 1_800_000)),
    "watch": ("--watch", _folder),
    "watch_use_polling": ("--watch-use-polling", bool),
    "watch_include": ("-i/--watch-include", _patterns_with_python),
    "watch_exclude": ("-x/--watch-exclude", _texts),
    "worker_shutdown_timeout_ms": ("--worker-shutdown-timeout", _at_least(0)),
    "hang_timeout_ms": ("--hang-timeout", _at_least(2000)),
    "max_tasks_per_child": ("--max-tasks-per-child", _at_least(1)),
    "max_rss_per_child_mib": ("--max-rss-per-child", _at_least(1)),
    "worker_timeout_ms": ("worker_timeout", _at_least(0)),
    "verbose": ("-v/--verbose", _at_least(0)),
}
