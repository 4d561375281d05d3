"""The command line of Dramatiq, item by item: every flag, variable and exit code that its users may have in a unit file
is accepted, with its meaning. What the items do is shown in ``tests/runtime``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from greenroom.cli.worker import parser
from greenroom.logging import LOG_FORMAT
from greenroom.runtime.exit_codes import ExitCode
from greenroom.settings import Settings, SettingsError, getenv, getenv_int
from tests.runtime.cli_kit import Program, wait_until

#: Each spelling, what may follow it, the setting, and what it is then.
FLAGS = [
    (("-p", "--processes"), ["3"], "processes", 3),
    (("-t", "--threads"), ["5"], "threads", 5),
    (("-P", "--path"), ["a", "b"], "path", ("a", "b")),
    (("-Q", "--queues"), ["mail", "web"], "queues", ("mail", "web")),
    (("--pid-file",), ["run.pid"], "pid_file", "run.pid"),
    (("--log-file",), ["run.log"], "log_file", "run.log"),
    (("--skip-logging",), [], "skip_logging", True),
    (("--use-spawn",), [], "use_spawn", True),
    (("-f", "--fork-function"), ["a:b"], "fork_functions", ("a:b",)),
    (("--worker-fork-timeout",), ["500"], "worker_fork_timeout_ms", 500),
    (("--worker-shutdown-timeout",), ["500"], "worker_shutdown_timeout_ms", 500),
    (("--watch",), ["/"], "watch", "/"),
    (("--watch-use-polling",), [], "watch_use_polling", True),
    (("-i", "--watch-include"), ["*.html"], "watch_include", ("**.py", "*.html")),
    (("-x", "--watch-exclude"), ["tests/*"], "watch_exclude", ("tests/*",)),
    (("-v", "--verbose"), [], "verbose", 1),
]


def loaded(*words: str, **environment: str) -> Settings:
    return Settings.load(vars(parser().parse_intermixed_args(words)), environment)


@pytest.mark.parametrize(
    ("flag", "values", "setting", "expected"),
    [(flag, values, setting, expected) for flags, values, setting, expected in FLAGS for flag in flags],
)
def test_flags(flag: str, values: list[str], setting: str, expected: object) -> None:
    """Each flag is known in all its spellings, behind the module and what it takes included."""
    assert getattr(loaded("app", flag, *values), setting) == expected


def test_defaults() -> None:
    """Without flags the settings are Dramatiq's."""
    settings = loaded("app")
    assert settings.processes == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert settings.threads == 8
    assert settings.path == (".",)
    assert settings.queues is None
    assert settings.pid_file is None
    assert settings.log_file is None
    assert settings.fork_functions == ()
    assert settings.worker_fork_timeout_ms == 30_000
    assert settings.worker_shutdown_timeout_ms == 600_000
    assert settings.watch is None
    assert settings.watch_include == ("**.py",)
    assert settings.watch_exclude == ()
    assert not settings.skip_logging
    assert not settings.use_spawn
    assert not settings.watch_use_polling
    assert not settings.verbose


def test_repeatable_flags() -> None:
    """Fork functions and patterns add up."""
    words = ("-f", "a:b", "--fork-function", "c:d", "-i", "*.html", "-i", "*.css", "-x", "a", "--watch-exclude", "b")
    settings = loaded("app", *words)
    assert settings.fork_functions == ("a:b", "c:d")
    assert settings.watch_include == ("**.py", "*.html", "*.css")
    assert settings.watch_exclude == ("a", "b")


def test_flags_that_take_several_words_take_all_that_follow() -> None:
    """``-Q mail web app`` names three queues, as in Dramatiq; modules come first, or behind another flag."""
    assert loaded("app", "-Q", "mail", "web").queues == ("mail", "web")
    assert loaded("app", "-P", "src", "-p", "2", "tasks").modules == ("app", "tasks")
    with pytest.raises(SettingsError, match="no MODULE given"):
        loaded("-Q", "mail", "web", "app")


@pytest.mark.parametrize("value", ["9", "1800001", "-1", "x"])
def test_the_fork_timeout_has_bounds(value: str) -> None:
    """10 ms to half an hour."""
    with pytest.raises(SettingsError, match="--worker-fork-timeout"):
        loaded("app", "--worker-fork-timeout", value)


@pytest.mark.parametrize("prefix", ["dramatiq", "greenroom"])
@pytest.mark.parametrize(
    "name",
    [
        "worker_timeout",
        "restart_delay",
        "queue_prefetch",
        "delay_queue_prefetch",
        "dead_message_ttl",
        "lua_max_stack",
        "group_callback_barrier_ttl",
        "prom_port",
    ],
)
def test_numbers_in_the_environment(monkeypatch: pytest.MonkeyPatch, prefix: str, name: str) -> None:
    """Each variable is read under Dramatiq's name and ours, which wins, and must be a number."""
    monkeypatch.setenv(f"{prefix}_{name}", "1234")
    assert getenv_int(f"dramatiq_{name}") == 1234
    loaded("app", **{f"{prefix}_{name}": "1234"})
    with pytest.raises(SettingsError, match=f"environment variable {prefix}_{name}: must be a whole number"):
        loaded("app", **{f"{prefix}_{name}": "soon"})
    monkeypatch.setenv(f"greenroom_{name}", "1")
    monkeypatch.setenv(f"dramatiq_{name}", "2")
    assert getenv_int(f"dramatiq_{name}") == 1


@pytest.mark.parametrize("name", ["prom_db", "prom_host"])
def test_texts_in_the_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Likewise."""
    monkeypatch.setenv(f"dramatiq_{name}", "theirs")
    assert getenv(f"dramatiq_{name}") == "theirs"
    monkeypatch.setenv(f"greenroom_{name}", "ours")
    assert getenv(f"dramatiq_{name}") == "ours"


def test_exit_codes() -> None:
    """0 to 4 mean what they mean in Dramatiq."""
    assert (ExitCode.OK, ExitCode.KILLED, ExitCode.USAGE, ExitCode.UNREACHABLE, ExitCode.PID_FILE) == (0, 1, 2, 3, 4)


def test_the_log_format() -> None:
    """Programs that read logs find them as they were."""
    expected = "[%(asctime)s] [PID %(process)d] [%(threadName)s] [%(name)s] [%(levelname)s] %(message)s"
    assert expected == LOG_FORMAT


@pytest.mark.parametrize("name", ["--version", "--help"])
def test_flags_that_only_tell(tmp_path: Path, name: str) -> None:
    """They print on standard output and exit with 0."""
    ended = Program(tmp_path).run("worker", name)
    assert ended.returncode == 0
    assert ended.stdout


def test_a_unit_file_of_dramatiqs_works(tmp_path: Path) -> None:
    """All of it in one command line: it starts, works, says so in its files, and stops with 0."""
    program = Program(tmp_path).write(
        "def beside():\n    mark('beside')\n    return 0\n\n@greenroom.actor\ndef leave(name):\n    mark(name)\n"
    )
    words = "-p 2 -t 4 -Q default --pid-file run.pid --log-file run.log -f app:beside --worker-fork-timeout 1000 -v"
    words += " --worker-shutdown-timeout 2000 --use-spawn --path ."
    program.send("leave", "here")
    log = tmp_path / "run.log"
    with program.start("app:broker", *words.split(), dramatiq_worker_timeout="500") as running:
        program.wait_for_mark("here")
        program.wait_for_mark("beside")
        assert (tmp_path / "run.pid").read_text() == f"{running.process.pid}\n"
        wait_until(lambda: " runs: " in log.read_text(), "all its processes are ready, which may be later")
        running.stop()
    assert not (tmp_path / "run.pid").exists()
    for name in ("MainProcess", "WorkerProcess(0)", "WorkerProcess(1)", "ForkProcess(0)"):
        assert f"[greenroom.{name}] [INFO] " in log.read_text()
