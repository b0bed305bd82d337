"""Messages that wait at the door for what they depend on, by a clock made up here."""

from __future__ import annotations

from typing import Any

from batchyard.broker.dependencies import LONGEST_S, MOST_HELD, PATIENCE_S, Doorstep
from batchyard.broker.store import Incoming


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def message(n: int = 0, list_key: str = "cpu") -> Incoming:
    return Incoming(list_key=list_key, raw=f"{n}".encode(), kind="job", id=f"j{n}", patient=True)


def round_of(door: Doorstep, clock: Clock, *fresh: Incoming, stays: bool = True, **more: Any) -> list[Incoming]:
    """One round of intake, in which all that is tried stays or goes; what was tried again."""
    again = door.again(["cpu"])
    tried = [*fresh, *again]
    door.tried(tried, set(range(len(tried))) if stays else set())
    door.round_ended(**{"taken": 0, "drained": True, **more})
    clock.now_s += 0.5
    return again


def test_a_message_is_tried_until_its_time_is_over_and_then_for_the_last_time() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, message())
    tried = [one.patient for _ in range(int(PATIENCE_S / 0.5) + 1) for one in round_of(door, clock)]
    assert tried == [True] * int(PATIENCE_S / 0.5) + [False]


def test_what_was_taken_in_is_forgotten() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, message())
    assert (door.count("cpu"), door.admits("cpu", b"0"), door.admits("cpu", b"1")) == (1, False, True)
    assert len(round_of(door, clock, stays=False)) == 1
    assert (door.count("cpu"), door.admits("cpu", b"0"), round_of(door, clock)) == (0, True, [])


def test_the_time_stands_still_while_messages_wait_behind_others_up_to_a_bound() -> None:
    clock = Clock()
    door = Doorstep(clock)
    began_s = clock.now_s
    round_of(door, clock, message())
    while all(one.patient for one in round_of(door, clock, drained=False)):
        assert clock.now_s - began_s <= LONGEST_S + 1
    assert clock.now_s - began_s >= LONGEST_S


def test_a_pause_of_the_process_counts_for_a_moment_only() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, message())
    clock.now_s += 20
    assert [one.patient for one in round_of(door, clock)] == [True]
    assert [one.patient for one in round_of(door, clock)] == [True]


def test_it_is_tried_at_once_when_something_was_taken_in_and_now_and_then_else() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, message())
    clock.now_s -= 0.49
    assert round_of(door, clock) == []
    clock.now_s -= 0.49
    assert round_of(door, clock, taken=1) == []
    clock.now_s -= 0.49
    assert len(round_of(door, clock)) == 1


def test_no_more_wait_than_there_is_room_for() -> None:
    clock = Clock()
    door = Doorstep(clock)
    round_of(door, clock, *(message(n) for n in range(MOST_HELD)))
    assert not door.admits("cpu", b"more")
    assert door.admits("gpu", b"more")
    assert door.again(["gpu"]) == []
