"""``greenroom dead``: listing, showing, replaying and dropping dead letters."""

from __future__ import annotations

import pytest

from greenroom.names import new_storage_id
from greenroom.ports.transport import Envelope, ErrorText
from tests.cli.kit import Desk, kill_ready

SYNTAX = ErrorText("SyntaxError", "Not [bold]this[/bold]\nway", "Traceback:\n  \x1b[31mred\n")


def test_dead_letters_in_a_table(desk: Desk) -> None:
    """One line a letter, newest first: without arguments, with what killed it, escaped."""
    (old,) = desk.bury("secret", hours_ago=5, retries=3)
    (new,) = desk.bury(actor="parse", queue="other", error=SYNTAX)
    said = desk.run("dead", "list")
    title, first, second = said.out.splitlines()
    assert title.split() == ["ID", "QUEUE", "ACTOR", "DIED", "RETRIES", "CRASHES", "ERROR"]
    assert first.split()[:3] == [new, "other", "parse"]
    assert first.endswith("SyntaxError: Not [bold]this[/bold]\\nway")
    assert second.split()[:3] == [old, "default", "mail"]
    assert "5 h ago" in second
    assert second.endswith(" 3        0  ConnectionError: refused by mail.example")
    assert "secret" not in said.out


def test_dead_letters_for_a_program(desk: Desk) -> None:
    """``--json`` gives one document, without arguments and tracebacks."""
    (id,) = desk.bury("secret", retries=3, error=None)
    found = desk.json("dead", "list")
    assert found["more"] is False
    ((letter),) = found["dead"]
    died_ms, message_id, sent_ms = letter.pop("died_ms"), letter.pop("message_id"), letter.pop("sent_ms")
    assert died_ms > 0
    assert sent_ms > 0
    assert len(message_id) == 36
    assert letter == {"id": id, "queue": "default", "attempt": 1, "crashes": 0, "error": None, "actor": "mail"}


def test_the_limit_of_the_list(desk: Desk) -> None:
    """Twenty are listed if nothing is said, so many as asked for, or all with 0; and it is said when there are more."""
    desk.bury(count=25)
    assert len(desk.json("dead", "list")["dead"]) == 20
    assert desk.json("dead", "list", "--limit", "3")["more"] is True
    everything = desk.json("dead", "list", "--limit", "0")
    assert (len(everything["dead"]), everything["more"]) == (25, False)
    assert "There are more" in desk.run("dead", "list").out
    assert "There are more" not in desk.run("dead", "list", "--limit", "25").out


def test_more_than_a_page_is_listed(desk: Desk) -> None:
    """A list that takes several pages of the engine shows every letter once."""
    ids = desk.bury(count=601)
    listed = [letter["id"] for letter in desk.json("dead", "list", "--limit", "0")["dead"]]
    assert sorted(listed) == sorted(ids)


def test_no_dead_letters(desk: Desk) -> None:
    """Where there are none, or none such, that is said."""
    desk.send(1)
    assert desk.run("dead", "list").out == "There are no dead letters.\n"
    desk.bury()
    assert desk.run("dead", "list", "--actor", "other").out == "There are no such dead letters.\n"
    assert desk.json("dead", "list", "--actor", "other") == {"dead": [], "more": False}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--actor", "parse"], "new garbled"),
        (["--queue", "other"], "new"),
        (["--queue", "other.XQ"], "new"),
        (["--error", "REFUSED by"], "old older"),
        (["--error", "connectionerror:"], "old older"),
        (["--error", "nothing like it"], ""),
        (["--older-than", "2h"], "old older"),
        (["--older-than", "4h"], "older"),
        (["--newer-than", "4h"], "new garbled silent old"),
        (["--newer-than", "4h", "--older-than", "2h"], "old"),
        (["--actor", "mail", "--error", "refused", "--newer-than", "1w"], "old older"),
        (["--actor", "mail", "--queue", "other"], ""),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else words,
)
def test_the_filters(desk: Desk, words: list[str], wanted: str) -> None:
    """Queue, actor, error text and age choose letters; together they have to hold all."""
    names = dict(
        zip(
            [
                *desk.bury(hours_ago=5),
                *desk.bury(hours_ago=3),
                *desk.bury(actor="parse", queue="other", error=SYNTAX),
                *desk.bury(actor="parse", error=SYNTAX),
                *desk.bury(error=None),
            ],
            ["older", "old", "new", "garbled", "silent"],
            strict=True,
        )
    )
    assert {names[letter["id"]] for letter in desk.json("dead", "list", *words)["dead"]} == set(wanted.split())


def test_one_letter_in_full(desk: Desk) -> None:
    """A letter is shown with its call, its options, its error and its history; every line is escaped."""
    (id,) = desk.bury("to", "x" * 3_000, error=SYNTAX, max_age=5)
    desk.run("dead", "replay", id)
    with desk.broker() as broker:
        (again,) = kill_ready(broker)
    said = desk.run("dead", "show", again)
    assert said.code == 0
    assert "call        mail('to', 'xxxx" in said.out
    assert "options     {'max_age': 5}" in said.out
    assert "Error: ConnectionError: refused by mail.example" in said.out
    assert "    ConnectionError: refused\n" in said.out
    assert "Before, 1 of 1: " in said.out
    assert "SyntaxError: Not [bold]this[/bold]\\nway" in said.out
    assert "      \\x1b[31mred\n" in said.out
    assert "\x1b" not in said.out
    assert max(map(len, said.out.splitlines())) < 2_100


def test_one_letter_for_a_program(desk: Desk) -> None:
    """``--json`` has everything: arguments, options, tracebacks, history."""
    (id,) = desk.bury("to", error=SYNTAX)
    letter = desk.json("dead", "show", id)
    assert (letter["id"], letter["args"], letter["kwargs"], letter["options"]) == (id, ["to"], {}, {})
    assert letter["error"] == {"type": SYNTAX.type, "message": SYNTAX.message, "traceback": SYNTAX.traceback}
    assert letter["history"] == []


def test_a_letter_by_the_id_of_its_message(desk: Desk) -> None:
    """What logs call a message is its own id: that finds the letter, too."""
    (id,) = desk.bury("to")
    message_id = desk.json("dead", "show", id)["message_id"]
    assert desk.json("dead", "show", message_id)["id"] == id


def test_bytes_that_are_no_message(desk: Desk) -> None:
    """A letter that cannot be decoded is listed, shown, replayed as it is, and dropped."""
    with desk.broker() as broker:
        broker.transport.push([Envelope("default", new_storage_id(), b"\xff garbage")])
        (id,) = kill_ready(broker)
    assert desk.run("dead", "list").out.splitlines()[1].split()[2] == "?"
    shown = desk.run("dead", "show", id).out
    assert "9 bytes that are not a message" in shown
    assert r"b'\xff garbage'" in shown
    assert desk.json("dead", "list", "--actor", "mail")["dead"] == []
    assert desk.run("dead", "replay", id).code == 0
    (waiting,) = desk.json("peek", "default")["messages"]
    assert waiting["body_base64"] is not None


# --- replaying


def test_a_letter_is_replayed(desk: Desk) -> None:
    """One letter is put back without a question, as if it had just been sent: no retries behind it, a fresh timestamp,
    its id and its other options."""
    (id,) = desk.bury(7, hours_ago=50, retries=20, traceback="old", requeue_timestamp=5, max_age=60_000)
    before = desk.json("dead", "show", id)
    said = desk.run("dead", "replay", id)
    assert (said.code, said.out) == (0, "Replayed 1 of 1 dead letters.\n")
    (message,) = desk.json("peek", "default")["messages"]
    assert message["message_id"] == before["message_id"]
    assert (message["args"], message["options"]) == ([7], {"max_age": 60_000})
    assert message["sent_ms"] > before["sent_ms"]
    assert (message["attempt"], message["crashes"]) == (0, 0)
    assert message["last"]["error"]["type"] == "ConnectionError"


@pytest.mark.parametrize("deed", ["replay", "drop"])
def test_only_what_was_chosen_is_touched(desk: Desk, deed: str) -> None:
    """Ids, filters or ``--all`` choose; nothing else is touched."""
    first, second, third = desk.bury(count=3)
    (other,) = desk.bury(queue="other")
    desk.run("dead", deed, second)
    assert desk.dead_ids() == {first, third, other}
    desk.run("dead", deed, "--queue", "other")
    assert desk.dead_ids() == {first, third}
    desk.run("dead", deed, "--all", "--yes")
    assert desk.dead_ids() == set()


@pytest.mark.parametrize(
    ("typed", "is_done"), [("y\n", True), ("yes\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)]
)
@pytest.mark.parametrize("deed", ["replay", "drop"])
def test_it_asks_before_it_touches_more_than_one(desk: Desk, deed: str, typed: str, is_done: bool) -> None:
    """At a terminal the number is told and a yes is waited for; all else changes nothing."""
    ids = desk.bury(count=3)
    said = desk.run("dead", deed, "--all", typed=typed)
    assert said.err.startswith(f"{deed.title()} 3 dead letters? [y/N] ")
    assert desk.dead_ids() == (set() if is_done else set(ids))
    assert said.code == (0 if is_done else 1)
    assert ("Nothing was changed." in said.err) is not is_done


@pytest.mark.parametrize("deed", ["replay", "drop"])
def test_without_a_terminal_it_refuses(desk: Desk, deed: str) -> None:
    """Where nobody can be asked it ends with 2 instead of hanging, and changes nothing."""
    ids = desk.bury(count=2)
    said = desk.run("dead", deed, *ids)
    assert said.code == 2
    assert "--yes" in said.err
    assert desk.dead_ids() == set(ids)


@pytest.mark.parametrize("deed", ["replay", "drop"])
@pytest.mark.parametrize("words", [[], ["--all", "--actor", "a"], ["x", "--all"], ["x", "--error", "y"]], ids=" ".join)
def test_it_must_be_said_which(desk: Desk, deed: str, words: list[str]) -> None:
    """Without a choice, or with two that contradict each other, nothing is touched."""
    ids = desk.bury(count=1)
    said = desk.run("dead", deed, *words)
    assert said.code == 2
    assert "say which" in said.err
    assert desk.dead_ids() == set(ids)


@pytest.mark.parametrize("deed", ["replay", "drop", "show"])
def test_an_id_that_names_nothing(desk: Desk, deed: str) -> None:
    """If one of the ids names no dead letter, it is named, and nothing is touched."""
    (id,) = desk.bury()
    said = desk.run("dead", deed, *([] if deed == "show" else [id]), "nothing")
    assert said.code == 2
    assert "'nothing'" in said.err
    assert desk.dead_ids() == {id}


def test_what_a_deed_tells_programs(desk: Desk) -> None:
    """``--json`` says how many were chosen and done."""
    desk.bury(count=3)
    assert desk.json("dead", "replay", "--all", "--yes") == {"replayed": 3, "chosen": 3, "interrupted": False}
    assert desk.json("dead", "drop", "--all") == {"dropped": 0, "chosen": 0, "interrupted": False}
    assert desk.run("dead", "drop", "--all").out == "There are no such dead letters.\n"


def test_many_are_replayed_in_steps(desk: Desk) -> None:
    """More than fit into one step are all put back, each once."""
    desk.bury(count=601)
    said = desk.run("dead", "replay", "--all", "--yes")
    assert said.out == "Replayed 601 of 601 dead letters.\n"
    counts = desk.counts()
    assert (counts.ready, counts.dead) == (601, 0)


@pytest.mark.parametrize(
    "words", [["--older-than", "yesterday"], ["--newer-than", "-1h"], ["--limit", "-1"]], ids=" ".join
)
def test_a_mistake_in_a_filter(desk: Desk, words: list[str]) -> None:
    """An age that is none is told in one line, before anything is looked at."""
    with pytest.raises(SystemExit) as e:
        desk.run("dead", "list", *words)
    assert e.value.code == 2


@pytest.mark.parametrize(
    "words",
    [
        *(["queues"], ["peek"], ["pause"], ["resume"], ["flush"], ["dead"]),
        *(["dead", action] for action in ("list", "show", "replay", "drop")),
    ],
    ids=" ".join,
)
def test_the_help_has_examples(desk: Desk, words: list[str]) -> None:
    """Every command's help ends with examples of itself."""
    with pytest.raises(SystemExit) as e:
        desk.run(*words, "--help")
    assert e.value.code == 0
    examples = desk.said().out.partition("\nexamples:\n")[2]
    assert f"  greenroom {' '.join(words)}" in examples
