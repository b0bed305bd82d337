"""Messages that wait at the door for what they depend on, by a clock made up here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchyard.broker.doorstep import LONGEST_S, MOST_HELD, MOST_HELD_BYTES, PATIENCE_S, Doorstep
from batchyard.broker.store import Incoming


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def message(n: int = 0, list_key: str = "cpu") -> Incoming:
    return Incoming(list_key=list_key, raw=f"{n}".encode(), kind="job", id=f"j{n}", patient=True)


def round_of(
    door: Doorstep, clock: Clock, *fresh: Incoming, there: bool = False, stays: bool = True, **more: Any
) -> list[Incoming]:
    """One round of intake, in which all that is tried stays or goes; what was tried again. there: its parents are."""
    asked = door.to_ask()
    door.told(asked, [there] * len(asked))
    again = door.again(["cpu"])
    tried = [*fresh, *again]
    door.tried(tried, set(range(len(tried))) if stays else set())
    if fresh:
        door.seen("cpu", [one.raw for one in fresh])
    door.round_ended(**{"taken": 0, "drained": True, **more})
    clock.now_s += 0.5
    return again


def test_a_message_whose_parents_are_not_there_is_tried_when_its_time_is_over() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, message())
    for _ in range(int(PATIENCE_S / 0.5)):
        assert len(door.to_ask()) == 1
        assert round_of(door, clock) == []
    assert door.to_ask() == []
    assert [one.patient for one in round_of(door, clock)] == [False]


def test_it_is_tried_when_its_parents_are_there_and_forgotten_when_taken_in() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, message())
    assert (door.count("cpu"), door.waits("cpu", b"0"), door.waits("cpu", b"1")) == (1, True, False)
    assert [one.patient for one in round_of(door, clock, there=True)] == [True]
    assert round_of(door, clock) == []  # it stayed after all: it is asked for anew
    assert len(round_of(door, clock, there=True, stays=False)) == 1
    assert (door.waits("cpu", b"0"), round_of(door, clock, there=True)) == (False, [])


def test_the_time_stands_still_while_messages_wait_behind_others_up_to_a_bound() -> None:
    clock = Clock()
    door = Doorstep(clock)
    began_s = clock.now_s
    round_of(door, clock, message())
    while not round_of(door, clock, drained=False):
        assert clock.now_s - began_s <= LONGEST_S + 1
    assert LONGEST_S <= clock.now_s - began_s <= 11


def test_a_pause_of_the_process_counts_for_a_moment_only() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, message())
    clock.now_s += LONGEST_S - 2
    assert round_of(door, clock) == []
    assert round_of(door, clock) == []


def test_it_is_asked_for_at_once_when_something_was_taken_in_and_now_and_then_else() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, message())
    clock.now_s -= 0.49
    assert round_of(door, clock, there=True) == []
    clock.now_s -= 0.49
    assert round_of(door, clock, there=True, taken=1) == []
    clock.now_s -= 0.49
    assert len(round_of(door, clock, there=True)) == 1


def test_no_more_lines_wait_than_there_is_room_for() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, *(message(n % 2) for n in range(MOST_HELD - 1)))
    assert (door.count("cpu"), door.full("cpu")) == (MOST_HELD - 1, False)
    door.seen("cpu", [b"0"] * MOST_HELD)
    assert (door.full("cpu"), door.full("gpu"), door.again(["gpu"])) == (True, False, [])


def test_what_is_too_large_to_wait_is_tried_for_the_last_time_at_once() -> None:
    clock = Clock()
    door = Doorstep(clock)
    large = [replace(message(), raw=bytes([n]) * (MOST_HELD_BYTES // 2)) for n in range(4)]
    round_of(door, clock, *large)
    assert door.full("cpu")
    again = door.again(["cpu"])
    assert [(one.raw, one.patient) for one in again] == [(one.raw, False) for one in large[2:]]
    door.tried(again, set())
    assert not door.full("cpu")
    assert len(door.to_ask()) == 2
