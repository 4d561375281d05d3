"""Settings: checked as a whole, and told where they are wrong."""

from __future__ import annotations

import os
import re
from dataclasses import FrozenInstanceError, fields

import pytest

from greenroom.settings import _CHECKS, Settings, SettingsError


def test_defaults() -> None:
    """Only the modules have to be given."""
    settings = Settings.load({"modules": ["app"]}, {})
    assert settings.modules == ("app",)
    assert settings.processes == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert (settings.threads, settings.path, settings.queues) == (8, (".",), None)
    assert settings.worker_shutdown_timeout_ms == 600_000
    assert settings.worker_timeout_ms is None


def test_every_setting_has_a_check() -> None:
    """A field that nobody checks cannot be loaded, so there is none."""
    assert set(_CHECKS) == {field.name for field in fields(Settings)}


def test_settings_do_not_change() -> None:
    """They are frozen."""
    settings = Settings.load({"modules": ["app"]}, {})
    with pytest.raises(FrozenInstanceError):
        settings.threads = 1  # type: ignore[misc]  # that is the test


def test_text_is_converted() -> None:
    """Values come from a command line as text; None stands for what was not given."""
    args = {"modules": ["app:broker"], "processes": "3", "threads": "2", "queues": ["a", "b.DQ", "a"], "log_file": None}
    settings = Settings.load(args, {})
    assert (settings.processes, settings.threads) == (3, 2)
    assert settings.queues == ("a", "b")
    assert settings.log_file is None


def test_spawn_has_two_names() -> None:
    """``--use-spawn`` is ``--start-method spawn``, and contradicts the others."""
    assert Settings.load({"modules": ["app"]}, {}).start_method is None
    assert Settings.load({"modules": ["app"], "use_spawn": True}, {}).start_method == "spawn"
    assert Settings.load({"modules": ["app"], "start_method": "forkserver"}, {}).start_method == "forkserver"
    for args, text in (
        ({"use_spawn": True, "start_method": "fork"}, "--use-spawn contradicts --start-method fork"),
        ({"start_method": "vfork"}, "--start-method: must be one of fork, spawn, forkserver, not 'vfork'"),
        ({"hang_timeout_ms": "100"}, "--hang-timeout: must be a whole number of at least 2000, not '100'"),
        ({"max_rss_per_child_mib": "0"}, "--max-rss-per-child: must be a whole number of at least 1, not '0'"),
    ):
        with pytest.raises(SettingsError, match=re.escape(text)):
            Settings.load({"modules": ["app"], **args}, {})


def test_all_mistakes_come_together() -> None:
    """The error lists them all, and an unknown key with the near name."""
    with pytest.raises(SettingsError) as caught:
        Settings.load({"modules": [], "proceses": 2, "threads": 0}, {"greenroom_restart_delay": "x"})
    assert len(caught.value.errors) == 4
    assert "unknown setting 'proceses'; did you mean 'processes'?" in caught.value.errors


@pytest.mark.parametrize("value", [True, 1.5, "1.5", "", "1e3", None])
def test_numbers_are_whole(value: object) -> None:
    """What is not a whole number is refused, and what was not given is not looked at."""
    args = {"modules": ["app"], "threads": value}
    if value is None:
        assert Settings.load(args, {}).threads == 8
        return
    with pytest.raises(SettingsError, match="threads"):
        Settings.load(args, {})


def test_our_variable_wins() -> None:
    """``greenroom_x`` is stronger than ``dramatiq_x``, and an argument stronger than both."""
    env = {"dramatiq_worker_timeout": "5", "greenroom_worker_timeout": "7"}
    assert Settings.load({"modules": ["app"]}, env).worker_timeout_ms == 7
    del env["greenroom_worker_timeout"]
    assert Settings.load({"modules": ["app"]}, env).worker_timeout_ms == 5
    assert Settings.load({"modules": ["app"], "worker_timeout_ms": 9}, env).worker_timeout_ms == 9


@pytest.mark.parametrize(
    ("variable", "near"),
    [("GREENROOM_ULR", "GREENROOM_URL"), ("greenroom_worker_timout", "greenroom_worker_timeout")],
)
def test_a_misspelt_variable_is_an_error(variable: str, near: str) -> None:
    """A variable near one of ours would be ignored in silence."""
    with pytest.raises(SettingsError, match=f"unknown environment variable {variable}; did you mean {near}"):
        Settings.load({"modules": ["app"]}, {variable: "1"})


@pytest.mark.parametrize("variable", ["GREENROOM_SERVICE_HOST", "GREENROOM_PORT", "GREENROOM_WORKER_PORT"])
def test_variables_of_others_are_left_alone(variable: str) -> None:
    """Kubernetes sets variables of our prefix for services of our name."""
    assert Settings.load({"modules": ["app"]}, {variable: "tcp://10.0.0.1"}).threads == 8
