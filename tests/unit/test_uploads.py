"""Who may upload now, and when a node has so much to upload that it takes no more jobs."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from batchyard.worker.uploads import FREE_BYTES, SMALL_BYTES, Line, Uploads
from yardtest.wait import until

LARGE, SMALL, TINY = SMALL_BYTES + 1, SMALL_BYTES, FREE_BYTES


def line(**changes: int) -> Line:
    return Line(**{"at_once": 2, "most": 5, "most_bytes": 10 * LARGE, **changes})


def test_those_that_came_first_send_first_and_the_next_when_one_is_done() -> None:
    one = line()
    for name in "abcd":
        one.queue(name, LARGE)
    assert [one.ahead(name) for name in "abcd"] == [0, 0, 1, 2]
    one.done("b")
    assert [one.ahead(name) for name in "acd"] == [0, 0, 1]
    one.queue("a", LARGE)  # said again, it keeps its place
    assert [one.ahead(name) for name in "acd"] == [0, 0, 1]


def test_what_is_small_does_not_wait_for_what_is_large_and_what_is_tiny_waits_for_nothing() -> None:
    one = line(at_once=1)
    for name, weight in (("l1", LARGE), ("l2", LARGE), ("s1", SMALL), ("s2", SMALL), ("t", TINY)):
        one.queue(name, weight)
    assert [one.ahead(name) for name in ("l1", "l2", "s1", "s2", "t")] == [0, 1, 0, 1, 0]


def test_it_is_full_with_too_many_attempts_or_bytes_and_no_more_when_one_leaves() -> None:
    one = line(most=2)
    one.enter("a")
    one.enter("a")
    assert not one.full
    one.enter("b")
    assert one.full
    one.leave("b")
    assert not one.full
    few = line(most_bytes=LARGE)
    few.queue("a", LARGE)
    assert not few.full, "what there is room for"
    few.queue("b", LARGE)
    assert few.full
    few.leave("a")
    assert (few.full, few.bytes) == (False, LARGE)


@given(st.lists(st.tuples(st.sampled_from("eqdl"), st.sampled_from("abcdef"), st.sampled_from([TINY, SMALL, LARGE]))))
def test_whatever_happens_nobody_is_forgotten_and_not_too_many_send(moves: list[tuple[str, str, int]]) -> None:
    one, here, sending = line(), set[str](), dict[str, int]()
    for move, name, weight in moves:
        if move == "e":
            one.enter(name)
            here.add(name)
        elif move == "q":
            one.queue(name, weight)
            if weight > TINY and name not in sending:
                sending[name] = weight
        else:
            (one.done if move == "d" else one.leave)(name)
            sending.pop(name, None)
            here -= {name} if move == "l" else set()
        assert one.count == len(here)
        for large in (True, False):
            of_line = [name for name, weight in sending.items() if (weight == LARGE) is large]
            assert sum(one.ahead(name) == 0 for name in of_line) == min(2, len(of_line))
            assert [one.ahead(name) for name in of_line] == [max(0, n - 1) for n in range(len(of_line))]
    for name in "abcdef":
        one.leave(name)
    assert (one.count, one.bytes, one.full) == (0, 0, False)


# -- with threads


def sender(uploads: Uploads, name: str, sent: list[str], stopped: threading.Event, go_on: threading.Event) -> list[int]:
    told: list[int] = []

    def send() -> None:
        with uploads.turn(name, LARGE, stopped=stopped.is_set, waits=told.append):
            sent.append(name)
            go_on.wait(30)

    threading.Thread(target=send, daemon=True).start()
    return told


def test_a_thread_waits_for_its_turn_is_told_how_many_are_before_it_and_a_stop_ends_its_wait() -> None:
    uploads, sent, going_on = Uploads(at_once=1), list[str](), threading.Event()
    first_over, never, stop = threading.Event(), threading.Event(), threading.Event()
    sender(uploads, "a", sent, never, first_over)
    until(lambda: sent == ["a"], "the first one sends")
    told = sender(uploads, "b", sent, never, going_on)
    until(lambda: told == [1], "the second one waits")
    stopped = sender(uploads, "c", sent, stop, going_on)
    until(lambda: stopped == [2], "the third one waits")
    stop.set()
    uploads.look()
    until(lambda: sent == ["a", "c"], "the one that was stopped goes on, to find that out")
    first_over.set()
    until(lambda: sent == ["a", "c", "b"], "the next one sends")
    going_on.set()


def test_it_calls_when_it_becomes_full_and_when_there_is_room_again() -> None:
    uploads, turns = Uploads(most=2), list[bool]()
    uploads.follow(lambda: turns.append(uploads.full))
    for name in "ab":
        uploads.enter(name)
    uploads.enter("c")
    for name in "abc":
        uploads.leave(name)
    assert turns == [True, False]


def test_patience_with_the_store_counts_from_when_it_went_away_or_the_container_ended() -> None:
    now = [100.0]
    uploads = Uploads(clock=lambda: now[0])
    assert uploads.refused(40) == 100
    now[0] = 160
    assert uploads.refused(50) == 100, "it waited for its turn while others found the store away"
    assert uploads.refused(150) == 150
    uploads.taken()
    assert uploads.refused(50) == 160
