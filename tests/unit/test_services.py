"""The servers that tests and people start: ``scripts/services``, ``scripts/servers``, ``tests/services.py``."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.servers import Nest, RabbitMQ, Redis, ServerFailed, compose, packages
from scripts.servers.process import free_port, read_record
from tests import services
from tests.runtime.cli_kit import is_running, wait_until

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "services"


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- one server


def test_a_server_answers_on_a_port_and_in_a_folder_of_its_own(start_redis: Callable[..., Redis]) -> None:
    """Two servers of a kind run beside each other and know nothing of each other."""
    one, other = start_redis(), start_redis(maxmemory="8mb")
    one.cli("SET", "key", "value")
    assert one.port != other.port
    assert other.cli("EXISTS", "key") == 0
    assert other.cli("CONFIG", "GET", "maxmemory") == {b"maxmemory": b"8388608"}


def test_a_killed_server_starts_again_on_its_port_and_its_data(start_redis: Callable[..., Redis]) -> None:
    """``kill`` is ``kill -9``, and returns when the server is dead; ``start`` brings it back where it was."""
    server = start_redis(appendonly="yes", appendfsync="always")
    url, pid = server.url, server.pid
    server.cli("SET", "key", "value")
    server.kill()
    assert not is_running(pid)
    assert not server.is_running()
    server.start()
    assert (server.url, server.cli("GET", "key")) == (url, b"value")
    server.restart()
    assert (server.url, server.cli("GET", "key")) == (url, b"value")


def test_a_paused_server_does_not_answer_and_does_not_hang_up(redis_server: Redis) -> None:
    """``pause`` stops the process: connections stay, answers come after ``resume``."""
    with socket.create_connection(("127.0.0.1", redis_server.port), 10) as connection:
        redis_server.pause()
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(5)
        redis_server.resume()
        connection.settimeout(10)
        assert connection.recv(5) == b"+PONG"


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The error has the last words of the server, and nothing is left of it."""
    server = Redis(tmp_path, maxmemory="a lot")
    with pytest.raises(ServerFailed, match="argument must be a memory value"):
        server.start()
    assert not server.is_running()


def test_a_port_that_somebody_took_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another program was faster to take the free port, the server gets another one."""
    services.need("redis")
    with socket.create_server(("127.0.0.1", 0)) as thief:
        ports = iter([thief.getsockname()[1], free_port()])
        monkeypatch.setattr("scripts.servers.process.free_port", lambda: next(ports))
        server = Redis(tmp_path).start()
        try:
            assert server.port != thief.getsockname()[1]
        finally:
            server.end()


def test_the_shared_redis_is_empty(redis_url: str, redis_shared: Redis) -> None:
    """What a test leaves behind, the next one does not find: here is nothing, and the next of these looks again."""
    assert redis_shared.url == redis_url
    assert redis_shared.cli("DBSIZE") == 0
    redis_shared.cli("SET", "left", "behind")


def test_the_shared_redis_is_empty_again(redis_url: str, redis_shared: Redis) -> None:
    """See above; in whatever order they run."""
    test_the_shared_redis_is_empty(redis_url, redis_shared)


def test_memcached_is_empty(memcached_url: str) -> None:
    """A memcached can be used, and keeps nothing from one test to the next."""
    host, _, port = memcached_url.partition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(b"get left\r\nset left 0 0 6\r\nbehind\r\n")
        answer = b""
        while b"STORED" not in answer:
            answer += connection.recv(100)
    assert answer == b"END\r\nSTORED\r\n"


# --- RabbitMQ


def vhost_of(url: str) -> str:
    return url.rpartition("/")[2]


def test_rabbitmq_gives_each_test_a_virtual_host(rabbitmq_url: str, rabbitmq_shared: RabbitMQ) -> None:
    """The URL names a virtual host that is there, is empty, and that nobody else is given; RabbitMQ's own programs work
    against the private server."""
    assert re.fullmatch(r"t\d+", vhost_of(rabbitmq_url))
    assert vhost_of(rabbitmq_url) in rabbitmq_shared.ctl("list_vhosts").split()
    assert rabbitmq_shared.ctl("list_queues", "-p", vhost_of(rabbitmq_url), "--no-table-headers").strip() == ""
    rabbitmq_shared.ctl("check_running", program="rabbitmq-diagnostics")


def test_rabbitmq_vhosts_do_not_run_out(rabbitmq_url: str, rabbitmq_shared: RabbitMQ) -> None:
    """More virtual hosts are made when those from the start are used up."""
    names = [f"more{number}-{vhost_of(rabbitmq_url)}" for number in range(2)]
    rabbitmq_shared.add_vhosts(names)
    permissions = rabbitmq_shared.ctl("list_permissions", "-p", names[1], "--no-table-headers")
    assert permissions.split()[0] == "guest"


# --- servers end with their users


USER = """
import sys, threading
from pathlib import Path
from scripts.servers import Nest, Redis
from scripts.servers.process import read_record

nest = Nest(Path(sys.argv[1]))
server = Redis(Path(sys.argv[1]) / "redis")
if read_record(server.folder) is None:
    server.start()
print(nest.folder, flush=True)
sys.stdin.read()
nest.close()
"""


def user(folder: Path) -> subprocess.Popen[str]:
    """A process that uses a nest, and starts its server if it is the first; it runs when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(folder)
    return process


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate(timeout=30)


def test_servers_end_when_their_user_is_killed(tmp_path: Path) -> None:
    """``kill -9`` of the only process that uses a server ends the server, too, and the watchdog that saw to it."""
    services.need("redis")
    first = user(tmp_path)
    record = read_record(tmp_path / "redis")
    assert record is not None
    (server, _) = record["processes"][0]
    watchdog = int((tmp_path / "watchdog.pid").read_text())
    assert is_running(server)
    end(first)
    wait_until(lambda: not is_running(server), "the server has ended")
    wait_until(lambda: not is_running(watchdog), "the watchdog has ended")
    assert read_record(tmp_path / "redis") is None


def test_shared_servers_live_as_long_as_their_last_user(tmp_path: Path) -> None:
    """Who started a shared server may end before others that use it; when the last one ends, it ends; who comes after
    that starts another one."""
    services.need("redis")
    first, second = user(tmp_path), user(tmp_path)
    record = read_record(tmp_path / "redis")
    assert record is not None
    (server, _) = record["processes"][0]
    end(first)
    with Nest(tmp_path):
        end(second)
        assert is_running(server)
    wait_until(lambda: not is_running(server), "the server has ended")
    third = user(tmp_path)
    later = read_record(tmp_path / "redis")
    assert later is not None
    assert later["processes"] != record["processes"]
    end(third)
    wait_until(lambda: read_record(tmp_path / "redis") is None, "the server has ended")


# --- the command


def test_start_prints_urls_and_stop_ends_what_runs(tmp_path: Path) -> None:
    """``start`` says where the servers are and leaves them running; a second ``start`` says the same; ``status`` knows
    them; ``stop`` ends them, and may be said again."""
    services.need("redis")
    started = run("start", "redis", "--folder", tmp_path)
    assert re.fullmatch(r"redis\tredis://127\.0\.0\.1:\d+/0\n", started.stdout), started.stderr
    record = read_record(tmp_path / "redis")
    assert record is not None
    (pid, _) = record["processes"][0]
    try:
        assert run("start", "redis", "--folder", tmp_path).stdout == started.stdout
        assert run("status", "--folder", tmp_path).stdout == started.stdout
        assert run("stop", "redis", "--folder", tmp_path).returncode == 0
        assert not is_running(pid)
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    assert run("status", "--folder", tmp_path).stdout == ""
    assert run("stop", "--folder", tmp_path).returncode == 0


def test_stop_spares_a_process_that_got_the_same_id(tmp_path: Path) -> None:
    """A record that is older than the process with its id ends nothing."""
    services.need("redis")
    run("start", "redis", "--folder", tmp_path)
    file = tmp_path / "redis" / "record.json"
    server = Redis(file.parent).attach(read_record(file.parent) or {})
    try:
        file.write_text(re.sub(r'"processes": \[\[(\d+), "\d+"\]\]', r'"processes": [[\1, "1"]]', file.read_text()))
        assert run("stop", "--folder", tmp_path).returncode == 0
        assert is_running(server.pid)
    finally:
        server.end()


def test_an_unknown_server_is_a_usage_error() -> None:
    """Names that the script does not know are refused with those that it does."""
    refused = run("start", "oracle")
    assert refused.returncode == 2
    assert "redis" in refused.stderr


# --- installing


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without servers, whose apt-get notes what it is told and brings what it is asked for."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = f"""#!/bin/sh
echo "$@" >>{tmp_path}/said
[ -e {tmp_path}/broken ] && {{ echo "E: no network" >&2; exit 100; }}
[ -x {tmp_path}/policy ] && echo "services may not start" >>{tmp_path}/said
case "$*" in *memcached*) printf '#!/bin/sh\\n' >{programs}/memcached; chmod +x {programs}/memcached;; esac
exit 0
"""
    (programs / "apt-get").write_text(script)
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin/../bin")
    monkeypatch.setattr(packages, "FOLDERS", ())
    monkeypatch.setattr(packages, "POLICY", tmp_path / "policy")
    monkeypatch.setattr(packages, "which", lambda program: found_in(programs, program))
    monkeypatch.setattr(packages, "rights", list)
    monkeypatch.setattr(packages, "stop_services", lambda _rights, services: note(tmp_path, f"stop {services}"))
    return tmp_path


def found_in(folder: Path, program: str) -> str | None:
    return str(folder / program) if (folder / program).exists() else None


def note(folder: Path, text: str) -> None:
    with (folder / "said").open("a") as file:
        file.write(text + "\n")


def said(machine: Path) -> list[str]:
    file = machine / "said"
    return file.read_text().splitlines() if file.exists() else []


def test_what_is_missing_is_installed_without_starting_its_service(machine: Path) -> None:
    """It is said first; no service may start meanwhile; what started all the same is stopped; the policy is gone."""
    told: list[str] = []
    packages.install(["memcached"], told.append)
    assert len(told) == 1
    assert "installing memcached" in told[0]
    assert said(machine) == [
        "update",
        "services may not start",
        "install -y --no-install-recommends memcached",
        "services may not start",
        "stop ['memcached']",
    ]
    assert not (machine / "policy").exists()
    packages.install(["memcached"], told.append)
    assert len(told) == 1
    assert len(said(machine)) == 5


def test_a_policy_of_the_machines_own_stays(machine: Path) -> None:
    """A file that says which services may start is neither changed nor removed."""
    (machine / "policy").write_text("mine")
    packages.install(["memcached"], lambda _text: None)
    assert (machine / "policy").read_text() == "mine"


def test_apt_that_fails_says_why(machine: Path) -> None:
    """Without a network, say: apt's words are passed on, and the policy is gone."""
    (machine / "broken").touch()
    with pytest.raises(packages.Missing, match="apt-get update failed: E: no network"):
        packages.install(["memcached"], lambda _text: None)
    assert not (machine / "policy").exists()


def test_nothing_is_installed_without_the_right(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not root, and not in CI with sudo, is not asked for a password."""
    monkeypatch.setattr(packages, "rights", lambda: None)
    packages.install(["memcached"], pytest.fail)
    assert said(machine) == []


@pytest.mark.parametrize(("user", "ci", "may"), [(0, "", True), (1000, "", False), (1000, "true", True)])
def test_who_may_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, ci: str, *, may: bool) -> None:
    """Root may, and CI where sudo asks for no password; nobody else."""
    (tmp_path / "sudo").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert (packages.rights() is not None) is may


def test_install_is_silent_where_nothing_is_to_do_and_refused_by_a_variable(tmp_path: Path) -> None:
    """``make test`` says nothing where all is there; with SERVICES=skip it looks for nothing."""
    services.need("redis")
    for variables in ({}, {"SERVICES": "skip", "PATH": str(tmp_path)}):
        done = run("install", "redis", **variables)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- tests without a server


@pytest.mark.parametrize(
    ("variables", "outcome", "text"),
    [
        ({}, pytest.skip.Exception, "sudo apt install redis-server"),
        ({"CI": "true"}, pytest.fail.Exception, "sudo apt install redis-server"),
        ({"SERVICES": "skip"}, pytest.skip.Exception, "SERVICES=skip"),
        ({"SERVICES": "skip", "CI": "true"}, pytest.skip.Exception, "SERVICES=skip"),
    ],
)
def test_tests_without_their_server(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], outcome: type[BaseException], text: str
) -> None:
    """They are skipped with a line that says how to get it; in CI they fail, unless servers were refused."""
    for name in ("CI", "SERVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(packages, "is_there", lambda _kind: False)
    monkeypatch.setattr(compose, "is_there", lambda: False)
    with pytest.raises(outcome, match=text):
        services.need("redis")


def test_containers_serve_where_programs_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a docker engine and without the programs, the servers are containers."""
    monkeypatch.delenv("SERVICES", raising=False)
    monkeypatch.setattr(packages, "is_there", lambda _kind: False)
    monkeypatch.setattr(compose, "is_there", lambda: True)
    assert services.need("redis") is compose.RedisContainer


def test_a_container_is_driven_by_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: Redis) -> None:
    """Each container is a project of its own, on a free port, with the server's settings as options."""
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\nshift 5\necho "$@ port=$REDIS_PORT options=$REDIS_OPTIONS" >>{tmp_path}/said\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    container = compose.RedisContainer(tmp_path / "redis", maxmemory_policy="allkeys-lru")
    container.port = redis_server.port  # what the engine would have published
    container.start()
    record = read_record(container.folder)
    assert record is not None
    assert record["end_command"][-4:] == ["down", "--volumes", "--timeout", "0"]
    assert f"greenroom-redis-{container.port}" in record["end_command"]
    container.pause()
    container.resume()
    container.kill()
    container.end()
    end = f" port={container.port} options=--maxmemory-policy allkeys-lru"
    assert said(tmp_path) == [
        f"up --detach redis{end}",
        f"pause redis{end}",
        f"unpause redis{end}",
        f"kill --signal SIGKILL redis{end}",
        f"down --volumes --timeout 0{end}",
    ]
    assert read_record(container.folder) is None


def test_compose_has_what_the_tests_ask_of_it() -> None:
    """compose.yaml has a service for each kind of server, with the variables for its port."""
    text = (ROOT / "compose.yaml").read_text()
    for kind in compose.CONTAINERS:
        assert f"\n  {kind}:\n" in text
        assert f"${{{kind.upper()}_PORT:-" in text
