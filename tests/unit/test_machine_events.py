from __future__ import annotations

from pathlib import Path

from autocompress.machine_events import MachineEvents
from autocompress.run_directory import RunDirectory

LOST = "machine http://a:1 is lost: no answer: ConnectError"


def test_what_workers_say_of_a_machine_comes_once_until_it_changes(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    directory.log("machine http://a:1 was said before")
    events = MachineEvents(directory)
    assert events.new() == ()
    directory.log(LOST)
    directory.log("3: accuracy 90 %")
    directory.log(f"{LOST}: another worker's words")
    directory.log("machine http://b:1 is lost: cut off")
    assert events.new() == (LOST, "machine http://b:1 is lost: cut off")
    assert events.new() == ()
    directory.log("machine http://a:1 is back")
    directory.log(LOST)
    assert events.new() == ("machine http://a:1 is back", LOST)


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    events = MachineEvents(directory)
    with (directory.path / "log.txt").open("a", encoding="utf-8") as file:
        file.write("2026-01-01 00:00:00 machine http://ä:1 is b")
        file.flush()
        assert events.new() == ()
        file.write("ack\n2026")
    assert events.new() == ("machine http://ä:1 is back",)
    assert events.new() == ()
