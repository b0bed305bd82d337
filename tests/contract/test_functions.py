"""Each Redis function against a real Redis: what it does, what its repeat does, and what a stale token may do."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from batchyard.broker import keys
from batchyard.broker.config import parse
from batchyard.broker.deadletters import DeadLetters
from batchyard.broker.errors import BrokerUnavailable, IntegrityError, InvalidConfig, NotFound
from batchyard.broker.intake import Intake
from batchyard.broker.record import Attempt, Claimed
from batchyard.broker.seal import KeyRing
from batchyard.broker.state import State
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.redis import RedisServer

RING = KeyRing.new()
LEASE_S = 30.0
KEEP_S = 1000
ALL = Free(vcpus=1000, memory_mib=1 << 20, gpus=8, disk_gib=1 << 20)
SMALL = Free(vcpus=1, memory_mib=1024, gpus=0, disk_gib=10)
Put = Callable[..., str]

pytestmark = pytest.mark.system
_numbers = itertools.count(1)


@pytest.fixture
def yard(fresh_redis_url: str) -> Yard:
    made = Yard(fresh_redis_url, RING)
    made.prepare()
    return made


@pytest.fixture
def put(yard: Yard) -> Put:
    """Takes a job in, as from a producer's list; its id."""

    def go(job_id: str | None = None, **fields: Any) -> str:
        job_id = job_id or f"j{next(_numbers)}"
        one = incoming(job_id, **fields)
        yard.redis.lpush(one.list_key, one.raw)
        assert yard.intake([one]) == 1
        return job_id

    return go


def letters(yard: Yard) -> DeadLetters:
    return DeadLetters(yard, lambda: RING)


def incoming(job_id: str, **fields: Any) -> Incoming:
    plain: dict[str, Any] = {
        "list_key": "cpu",
        "raw": f"message of {job_id}".encode(),
        "kind": "job",
        "id": job_id,
        "queue": "cpu",
        "priority": 0,
        "vcpus": 1.0,
        "memory_mib": 512,
        "disk_gib": 1.0,
        "clear": {"image": "busybox", "name": ""},
        "document": b"\x00sealed\xff",
    }
    return Incoming(**plain | fields)


def claim(yard: Yard, free: Free = ALL, *, node: str = "n1", count: int = 100, queues: Any = ("cpu",)) -> list[Claimed]:
    """All that a node gets, asking as long as it is told to."""
    for _ in range(200):
        more, jobs = yard.claim(node, f"c{next(_numbers)}", free, queues, lease_s=LEASE_S, count=count)
        if jobs or not more:
            return jobs
    raise AssertionError("200 calls, and still more to look at")


def one(yard: Yard, **more: Any) -> Claimed:
    (job,) = claim(yard, count=1, **more)
    return job


def attempt(**more: Any) -> Attempt:
    fields: dict[str, Any] = {"node": "n1", "started": 1.0, "ended": 2.0, "exit_code": 1, "reason": "test"}
    return Attempt(**fields | more)


def settle(yard: Yard, job: Claimed, state: State = State.SUCCEEDED, effects: Any = (), **fields: str) -> bool:
    return yard.settle(job, state, attempt(), fields, list(effects), retention_s=KEEP_S)


def tick(yard: Yard, *queues: str) -> list[int]:
    return yard.tick(queues or ("cpu",), lease_s=LEASE_S)


def lapse(yard: Yard, *job_ids: str) -> None:
    """As if the nodes of these jobs had been silent for a lease, while the reaper looked all the time."""
    tick(yard)
    yard.redis.zadd(keys.LEASES, dict.fromkeys(job_ids, 1), xx=True)


def waiting(yard: Yard, queue: str = "cpu") -> int:
    return yard.depth([queue])[queue].index


def ends(yard: Yard) -> dict[str, Any]:
    return yard.outbox()[1]


def nothing_left(yard: Yard) -> None:
    left = [k for k in yard.redis.keys("by:q:*") if yard.redis.exists(k)]
    assert left == []
    assert yard.redis.zcard(keys.LEASES) == yard.redis.zcard(keys.EXPIRING) == yard.redis.hlen(keys.OUTBOX) == 0
    assert yard.redis.keys("by:node:*:jobs") == []


# -- intake


def test_intake_moves_a_message_from_its_list_into_a_record(yard: Yard, put: Put) -> None:
    put("j", vcpus=0.5, memory_mib=100, gpus=1, disk_gib=2.0, priority=3, clear={"image": "i", "name": "n"})
    record = yard.record("j")
    assert (record.state, record.queue, record.image, record.name, record.priority) == ("RUNNABLE", "cpu", "i", "n", 3)
    assert (record.vcpus, record.memory_mib, record.gpus, record.disk_gib) == (0.5, 100, 1, 2.0)
    assert yard.redis.llen("cpu") == 0
    assert waiting(yard) == 1
    assert [r.id for r in yard.recent(10)] == ["j"]


def test_intake_repeated_after_a_lost_reply_takes_nothing_twice(yard: Yard) -> None:
    batch = [incoming(f"r{n}") for n in range(3)]
    yard.redis.lpush("cpu", *(m.raw for m in batch))
    assert yard.intake(batch) == 3
    assert yard.intake(batch) == 0
    assert waiting(yard) == 3


def test_a_message_sent_twice_is_one_job(yard: Yard, put: Put) -> None:
    put("twice")
    again = incoming("twice", raw=b"the same id, another text")
    yard.redis.lpush("cpu", again.raw)
    assert yard.intake([again]) == 1
    assert (waiting(yard), yard.redis.llen("cpu")) == (1, 0)


def test_a_message_that_is_not_in_its_list_is_left_alone(yard: Yard) -> None:
    """Another process has taken it in meanwhile."""
    assert yard.intake([incoming("gone")]) == 0
    with pytest.raises(NotFound):
        yard.record("gone")


def test_other_messages_of_the_list_stay(yard: Yard, put: Put) -> None:
    yard.redis.lpush("cpu", "later")
    put("j")
    assert yard.redis.lrange("cpu", 0, -1) == [b"later"]


def test_what_is_no_job_becomes_a_dead_letter(yard: Yard) -> None:
    raw = bytes(range(256))
    dead = Incoming(list_key="cpu", raw=raw, kind="dead", reason='no "message"')
    good = incoming("good")
    yard.redis.lpush("cpu", raw, good.raw)
    assert yard.intake([dead, good]) == 2
    assert yard.intake([dead, good]) == 0
    ((number, letter),) = letters(yard).list().items()
    assert (letter["reason"], letter["list"]) == ('no "message"', "cpu")
    assert letter["at"] > 1.7e12
    assert waiting(yard) == 1
    assert letters(yard).drop([number]) == 1
    assert letters(yard).list() == {}


def test_the_message_of_a_dead_letter_is_sealed(yard: Yard) -> None:
    raw = b"pl4nted-s3cret, and no message"
    yard.redis.lpush("cpu", raw)
    assert Intake(yard).run(parse({"queues": {"cpu": {"environments": ["e"]}},
                                   "environments": {"e": {"vcpus": 1, "memory_mib": 64}}}, "test")) == 1  # fmt: skip
    kept: Any = yard.redis.hvals(keys.DEAD)
    assert not any(b"pl4nted" in one for one in kept)
    assert letters(yard).show("1")["raw"] == raw.decode()
    with pytest.raises(IntegrityError):
        DeadLetters(yard, KeyRing.new).show("1")


def test_of_too_many_dead_letters_the_oldest_go(yard: Yard) -> None:
    most = 10_000
    yard.redis.hset(keys.DEAD, mapping=dict.fromkeys(range(1, most + 1), "{}"))
    yard.redis.set(keys.DEAD_SEQUENCE, most)
    yard.redis.lpush("cpu", b"no message")
    yard.intake([Incoming(list_key="cpu", raw=b"no message", kind="dead", reason="it is none")])
    assert yard.redis.hlen(keys.DEAD) == most
    assert not yard.redis.hexists(keys.DEAD, "1")
    assert yard.redis.hexists(keys.DEAD, str(most + 1))


def test_a_job_refused_at_the_door_waits_in_the_outbox_with_its_reason(yard: Yard, put: Put) -> None:
    put("bad", kind="end", reason='no such "field"')
    assert ends(yard)["end:bad"] == {"id": "bad", "state": "FAILURE", "reason": 'no such "field"'}
    assert waiting(yard) == 0
    assert claim(yard) == []


def test_a_cancel_that_came_first_ends_the_job_at_intake(yard: Yard, put: Put) -> None:
    assert yard.cancel("early", "not wanted", terminate=False) == "stored"
    assert 0 < yard.redis.ttl(keys.cancelled("early")) <= 86400
    put("early")
    assert ends(yard)["end:early"]["state"] == "REVOKED"
    assert (waiting(yard), yard.redis.exists(keys.cancelled("early"))) == (0, 0)


def test_a_message_that_has_expired_before_intake_never_runs(yard: Yard, put: Put) -> None:
    put("late", expires_ms=1)
    assert ends(yard)["end:late"]["reason"] == "expired"
    assert claim(yard) == []


def test_a_chords_counter_outlives_its_slowest_member(yard: Yard, put: Put) -> None:
    yard.redis.set("celery-taskset-meta-g.s", 3, ex=100)
    put(chord_key="celery-taskset-meta-g.s")
    assert yard.redis.ttl("celery-taskset-meta-g.s") == -1


def test_intake_is_refused_when_memory_is_out_and_running_jobs_still_end(own_redis: RedisServer) -> None:
    yard = Yard(own_redis.url(), RING)
    yard.prepare()
    held, message = incoming("held"), incoming("refused")
    yard.redis.lpush("cpu", held.raw, message.raw)
    yard.intake([held])
    job = one(yard)
    yard.redis.config_set("maxmemory", "1")
    with pytest.raises(BrokerUnavailable, match="memory"):
        yard.intake([message])
    assert yard.renew("n1", {}, {"held": job.token}, lease_s=LEASE_S) == []
    assert settle(yard, job)
    assert yard.cancel("refused", "x", terminate=False) == "stored"
    yard.redis.config_set("maxmemory", "0")
    assert yard.intake([message]) == 1  # it was still there
    assert yard.record("held").state == "SUCCEEDED"


# -- claim


def test_claim_leases_the_job_out(yard: Yard, put: Put) -> None:
    put("j")
    job = one(yard)
    assert (job.id, job.attempt, job.queue, job.document) == ("j", 1, "cpu", b"\x00sealed\xff")
    record = yard.record("j")
    assert (record.state, record.node) == ("STARTING", "n1")
    deadline = yard.redis.zscore(keys.LEASES, "j")
    assert deadline is not None
    assert LEASE_S * 1000 - 5000 < deadline - yard.now_s() * 1000 <= LEASE_S * 1000
    assert yard.redis.smembers(keys.node_jobs("n1")) == {b"j"}
    assert waiting(yard) == 0
    assert claim(yard, node="n2") == []


def test_the_most_urgent_job_is_claimed_first_and_equals_by_arrival(yard: Yard, put: Put) -> None:
    for number, priority in enumerate((5, 0, 9, 0, 5)):
        put(f"p{priority}-{number}", priority=priority, vcpus=1 + number / 10)  # a class each
    for number in (5, 6):
        put(f"p5-{number}", priority=5)
    assert [j.id for j in claim(yard)] == ["p0-1", "p0-3", "p5-0", "p5-4", "p5-5", "p5-6", "p9-2"]


def test_queues_are_served_in_the_order_given(yard: Yard, put: Put) -> None:
    put("a", queue="low")
    put("b", queue="high", priority=9)
    put("c", queue="none")
    assert [j.id for j in claim(yard, queues=("high", "low"))] == ["b", "a"]
    assert waiting(yard, "none") == 1


@pytest.mark.parametrize("lack", [{"vcpus": 1.001}, {"memory_mib": 1025}, {"gpus": 1}, {"disk_gib": 10.01}])
def test_what_does_not_fit_is_passed_over(yard: Yard, put: Put, lack: dict[str, Any]) -> None:
    put("large", **lack)
    put("fits", priority=9)
    assert [j.id for j in claim(yard, SMALL)] == ["fits"]
    assert waiting(yard) == 1


def test_no_more_is_claimed_than_fits_together(yard: Yard, put: Put) -> None:
    for _ in range(5):
        put(vcpus=0.4, memory_mib=100)
    assert len(claim(yard, SMALL)) == 2


def test_no_more_is_claimed_than_asked_for(yard: Yard, put: Put) -> None:
    for _ in range(5):
        put()
    assert len(claim(yard, count=3)) == 3


def test_a_claim_repeated_after_a_lost_reply_gets_the_same_jobs(yard: Yard, put: Put) -> None:
    for _ in range(4):
        put()
    first = yard.claim("n1", "same", ALL, ["cpu"], lease_s=LEASE_S, count=2)
    assert yard.claim("n1", "same", ALL, ["cpu"], lease_s=LEASE_S, count=2) == first
    assert waiting(yard) == 2
    settle(yard, first[1][0])
    assert yard.claim("n1", "same", ALL, ["cpu"], lease_s=LEASE_S, count=2)[1] == first[1][1:]
    other = yard.claim("n1", "next", ALL, ["cpu"], lease_s=LEASE_S, count=2)
    assert {j.id for j in other[1]}.isdisjoint({j.id for j in first[1]})


def test_two_nodes_never_get_the_same_job(yard: Yard, put: Put) -> None:
    ids = [put() for _ in range(20)]
    got = [j.id for n in range(20) for j in claim(yard, node=f"n{n % 2}", count=1)]
    assert sorted(got) == sorted(ids)


def test_a_job_that_has_expired_is_not_claimed(yard: Yard, put: Put) -> None:
    put("late", expires_ms=int(yard.now_s() * 1000) + 100_000)
    put("good", priority=9)
    yard.redis.hset(keys.job("late"), "expires", "1")
    assert [j.id for j in claim(yard)] == ["good"]
    assert ends(yard)["end:late"]["reason"] == "expired"


def test_a_job_whose_record_is_gone_is_dropped_from_the_index(yard: Yard, put: Put) -> None:
    put("gone")
    put("here", priority=9)
    yard.redis.delete(keys.job("gone"))
    assert [j.id for j in claim(yard)] == ["here"]
    assert waiting(yard) == 0


def test_a_free_node_takes_work_the_moment_it_is_there(yard: Yard, put: Put) -> None:
    heard = yard.pubsub()
    heard.subscribe(keys.WAKE)
    heard.get_message(timeout=1)
    put()
    message = heard.get_message(timeout=5)
    assert message is not None
    assert message["data"] == b"cpu"
    heard.close()


# -- shape classes


def test_ten_thousand_demands_make_at_most_256_classes(yard: Yard) -> None:
    for start in range(0, 2000, 50):
        batch = [
            incoming(f"s{n}", vcpus=1 + (n % 97) / 100, memory_mib=100 + n, gpus=n % 3, disk_gib=n / 7)
            for n in range(start, start + 50)
        ]
        yard.redis.lpush("cpu", *(m.raw for m in batch))
        assert yard.intake(batch) == 50
    assert yard.redis.hlen("by:q:cpu:n") <= 256
    assert waiting(yard) == 2000
    seen: list[str] = []
    while jobs := claim(yard, ALL, count=64):
        seen += [j.id for j in jobs]
        for job in jobs:
            settle(yard, job)
    assert sorted(seen) == sorted(f"s{n}" for n in range(2000))
    nothing_left(yard)


def test_a_job_behind_many_that_do_not_fit_is_found(yard: Yard, put: Put) -> None:
    """In one coarse class: each is looked at, a bounded number a call."""
    for n in range(300):
        put(vcpus=2, memory_mib=2000 + n)
    put("fits", vcpus=0.9, memory_mib=777)
    put("also", vcpus=0.9, memory_mib=778, priority=9)
    assert sorted(j.id for _ in range(2) for j in claim(yard, SMALL, count=1)) == ["also", "fits"]
    assert claim(yard, SMALL) == []


def test_an_exact_class_is_taken_up_again_when_it_was_empty(yard: Yard, put: Put) -> None:
    put()
    settle(yard, one(yard))
    assert yard.redis.hlen("by:q:cpu:n") == 0
    put("again")
    assert one(yard).id == "again"


# -- start, renew, held


def test_start_tells_the_record_and_the_producer(yard: Yard, put: Put) -> None:
    put("j")
    job = one(yard)
    heard = yard.pubsub()
    heard.subscribe(keys.result("j"))
    heard.get_message(timeout=1)
    for _ in range(2):  # its repeat does the same
        assert yard.start(job, started_s=12.5, celery='{"status":"STARTED"}', expires_s=100)
    message = heard.get_message(timeout=5)
    assert message is not None
    assert message["data"] == b'{"status":"STARTED"}'
    heard.close()
    record = yard.record("j")
    assert (record.state, record.started) == ("RUNNING", 12.5)
    assert 0 < yard.redis.ttl(keys.result("j")) <= 100


def test_a_stale_token_starts_nothing(yard: Yard, put: Put) -> None:
    put("j")
    old = one(yard)
    lapse(yard, "j")
    tick(yard)
    assert not yard.start(old, started_s=1, celery="{}", expires_s=100)
    assert yard.redis.get(keys.result("j")) is None
    assert yard.record("j").state == "RUNNABLE"


def test_renew_beats_for_the_node_and_keeps_its_leases(yard: Yard, put: Put) -> None:
    put("j")
    job = one(yard)
    lapse(yard, "j")
    assert yard.renew("n1", {"vcpus": "4"}, {"j": job.token}, lease_s=LEASE_S) == []
    assert tick(yard)[0] == 0
    assert yard.nodes()["n1"]["vcpus"] == "4"
    assert yard.nodes()["n1"]["jobs"] == "1"


def test_renew_tells_of_lost_leases_and_of_cancels(yard: Yard, put: Put) -> None:
    for name in ("lost", "cancelled", "kept"):
        put(name)
    held = {j.id: j.token for j in claim(yard)}
    lapse(yard, "lost")
    tick(yard)
    yard.cancel("cancelled", "not wanted", terminate=True)
    assert sorted(yard.renew("n1", {}, {**held, "unknown": "1:x"}, lease_s=LEASE_S)) == [
        ("cancelled", "cancel", "not wanted"),
        ("lost", "lost", ""),
        ("unknown", "lost", ""),
    ]
    assert yard.redis.zscore(keys.LEASES, "lost") is None


def test_a_restarted_node_is_told_what_it_holds(yard: Yard, put: Put) -> None:
    put("a")
    put("b")
    jobs = {j.id: j for j in claim(yard)}
    yard.start(jobs["a"], started_s=12.5, celery="", expires_s=0)
    yard.cancel("b", "why", terminate=True)
    held = {j.id: j for j in yard.held("n1")}
    assert held["a"].token == jobs["a"].token
    assert (held["a"].started, held["a"].cancel, held["a"].document) == (12.5, "", b"\x00sealed\xff")
    assert (held["b"].started, held["b"].cancel) == (None, "why")
    assert yard.held("n2") == []


def test_a_node_that_holds_nothing_may_leave(yard: Yard, put: Put) -> None:
    put()
    job = one(yard)
    yard.renew("n1", {"x": "y"}, {job.id: job.token}, lease_s=LEASE_S)
    assert not yard.leave("n1")
    settle(yard, job)
    assert yard.leave("n1")
    assert yard.leave("n1")
    assert yard.nodes() == {}


# -- settle, give back


def test_settle_ends_record_lease_and_all_that_follows_in_one(yard: Yard, put: Put) -> None:
    put("j", expires_ms=int(yard.now_s() * 1000) + 100_000)
    job = one(yard)
    effects = [("SET", ("a", "1")), ("LPUSH", ("next", "step")), ("INCRBY", ("n", 2))]
    assert settle(yard, job, State.SUCCEEDED, effects, exit_code="0", result='{"job_id": "j"}')
    record = yard.record("j")
    assert (record.state, record.exit_code, record.result) == ("SUCCEEDED", 0, {"job_id": "j"})
    assert [a.reason for a in record.attempts] == ["test"]
    assert 0 < yard.redis.ttl(keys.job("j")) <= KEEP_S
    assert (yard.redis.get("a"), yard.redis.lrange("next", 0, -1), yard.redis.get("n")) == (b"1", [b"step"], b"2")
    nothing_left(yard)


def test_settle_repeated_after_a_lost_reply_does_nothing_more(yard: Yard, put: Put) -> None:
    put("j")
    job = one(yard)
    for _ in range(3):
        assert settle(yard, job, State.SUCCEEDED, [("LPUSH", ("next", "step"))])
    assert yard.redis.llen("next") == 1
    assert len(yard.record("j").attempts) == 1


def test_a_stale_token_settles_nothing(yard: Yard, put: Put) -> None:
    put("j")
    old = one(yard)
    lapse(yard, "j")
    tick(yard)
    assert not settle(yard, old, State.FAILED, [("LPUSH", ("next", "step"))])
    new = one(yard, node="n2")
    assert not settle(yard, old, State.FAILED, [("LPUSH", ("next", "step"))])
    assert yard.redis.exists("next") == 0
    assert yard.record("j").state == "STARTING"
    assert settle(yard, new)
    assert not settle(yard, old, State.FAILED, [("LPUSH", ("next", "step"))])
    assert yard.record("j").state == "SUCCEEDED"


def test_an_effect_that_fails_becomes_a_dead_letter_and_stops_no_other(yard: Yard, put: Put) -> None:
    put("j")
    yard.redis.set("text", "x")
    effects = [("LPUSH", ("text", "step")), ("NOSUCH", ("a",)), ("PART", ("text",)), ("SET", ("a", "1"))]
    assert settle(yard, one(yard), State.SUCCEEDED, effects)
    assert yard.redis.get("a") == b"1"
    reasons = [letter["reason"] for letter in letters(yard).list().values()]
    assert len(reasons) == 3
    assert "LPUSH failed: WRONGTYPE" in reasons[0]
    assert yard.record("j").state == "SUCCEEDED"


def test_a_job_given_back_is_at_the_front_again_with_no_attempt_used(yard: Yard, put: Put) -> None:
    put("first")
    put("second")
    job = one(yard)
    for _ in range(2):  # its repeat changes nothing
        assert yard.give_back(job, None)
    assert waiting(yard) == 2
    again = one(yard)
    assert (again.id, again.attempt) == ("first", 1)
    assert again.token != job.token


def test_a_retry_uses_up_an_attempt_and_is_on_the_record(yard: Yard, put: Put) -> None:
    put("j")
    job = one(yard)
    yard.start(job, started_s=1, celery="{}", expires_s=100)
    for _ in range(2):
        assert yard.give_back(job, attempt(reason="exit 1"), fields={"reason": "exit 1"})
    record = yard.record("j")
    assert (record.state, record.reason, [a.reason for a in record.attempts]) == ("RUNNABLE", "exit 1", ["exit 1"])
    assert record.started is None
    assert yard.redis.get(keys.result("j")) is None  # no longer STARTED for its producer
    assert one(yard).attempt == 2


def test_a_stale_token_gives_nothing_back(yard: Yard, put: Put) -> None:
    put("j")
    old = one(yard)
    lapse(yard, "j")
    tick(yard)
    one(yard, node="n2")
    assert not yard.give_back(old, attempt())
    assert yard.record("j").node == "n2"
    assert waiting(yard) == 0


def test_a_job_cancelled_while_it_ran_ends_when_it_is_given_back(yard: Yard, put: Put) -> None:
    put("j")
    job = one(yard)
    assert yard.cancel("j", "not wanted", terminate=True) == "stopping"
    assert yard.give_back(job, None)
    assert waiting(yard) == 0
    assert ends(yard)["end:j"] == {"id": "j", "state": "REVOKED", "reason": "not wanted"}


# -- tick: reaping, due, expiry, forgetting


def test_a_lapsed_lease_goes_back_to_the_front_and_uses_up_no_attempt(yard: Yard, put: Put) -> None:
    put("first")
    put("second")
    job = one(yard)
    lapse(yard, "first")
    assert tick(yard)[0] == 1
    assert tick(yard)[0] == 0
    record = yard.record("first")
    assert (record.state, record.losses) == ("RUNNABLE", 1)
    assert [(a.counted, a.node) for a in record.attempts] == [(False, "n1")]
    assert "n1" in record.attempts[0].reason
    again = one(yard, node="n2")
    assert (again.id, again.attempt) == ("first", 1)
    assert again.token != job.token
    assert yard.redis.smembers(keys.node_jobs("n1")) == set()


def test_a_claim_reaps_too(yard: Yard, put: Put) -> None:
    """A yard whose controller is down goes on."""
    put("j")
    one(yard)
    lapse(yard, "j")
    assert one(yard, node="n2").id == "j"


def test_every_lease_gets_one_more_period_when_nobody_looked(yard: Yard, put: Put) -> None:
    """Redis or the controller was away, so nodes had no chance either."""
    put("j")
    one(yard)
    lapse(yard, "j")
    yard.redis.set(keys.REAPER, int(yard.now_s() * 1000 - LEASE_S * 1000))
    assert tick(yard)[0] == 0
    left = (yard.redis.zscore(keys.LEASES, "j") or 0) - yard.now_s() * 1000
    assert LEASE_S * 1000 - 5000 < left <= LEASE_S * 1000
    lapse(yard, "j")
    assert tick(yard)[0] == 1


def test_a_clock_that_jumped_back_costs_no_lease(yard: Yard, put: Put) -> None:
    put("j")
    one(yard)
    lapse(yard, "j")
    yard.redis.set(keys.REAPER, int(yard.now_s() * 1000 + 3_600_000))
    assert tick(yard)[0] == 0
    assert yard.record("j").state == "STARTING"


def test_a_delayed_job_waits_for_its_time(yard: Yard, put: Put) -> None:
    put("j", eta_ms=int(yard.now_s() * 1000) + 3_600_000)
    assert (yard.record("j").state, claim(yard)) == ("PENDING", [])
    assert yard.depth(["cpu"])["cpu"].delayed == 1
    assert tick(yard)[1] == 0
    yard.redis.zadd("by:q:cpu:delayed", {"j": 1})
    assert tick(yard)[1] == 1
    assert yard.record("j").state == "RUNNABLE"
    assert one(yard).id == "j"


def test_a_claim_finds_what_is_due(yard: Yard, put: Put) -> None:
    put("j", eta_ms=int(yard.now_s() * 1000) + 3_600_000)
    yard.redis.zadd("by:q:cpu:delayed", {"j": 1})
    assert one(yard).id == "j"


def test_an_eta_that_has_passed_delays_nothing(yard: Yard, put: Put) -> None:
    put("j", eta_ms=1000)
    assert one(yard).id == "j"


@pytest.mark.parametrize("delayed", [False, True])
def test_what_waits_too_long_expires(yard: Yard, put: Put, delayed: bool) -> None:
    far = int(yard.now_s() * 1000) + 3_600_000
    put("j", expires_ms=far, eta_ms=far if delayed else 0)
    assert tick(yard)[2] == 0
    yard.redis.zadd(keys.EXPIRING, {"j": 1})
    assert tick(yard)[2] == 1
    assert tick(yard)[2] == 0
    assert ends(yard)["end:j"] == {"id": "j", "state": "REVOKED", "reason": "expired"}
    assert yard.depth(["cpu"])["cpu"].total == 0


def test_what_runs_has_made_it_in_time(yard: Yard, put: Put) -> None:
    put("j", expires_ms=int(yard.now_s() * 1000) + 3_600_000)
    one(yard)
    yard.redis.zadd(keys.EXPIRING, {"j": 1})
    assert tick(yard)[2] == 0
    assert yard.record("j").state == "STARTING"
    assert yard.redis.zcard(keys.EXPIRING) == 0


def test_lines_of_expired_records_go_too(yard: Yard, put: Put) -> None:
    put("old")
    put("new", priority=1)
    settle(yard, one(yard))
    yard.redis.delete(keys.job("old"))
    assert tick(yard)[3] == 1
    assert [r.id for r in yard.recent(10)] == ["new"]


# -- cancel


def test_cancel_ends_what_waits(yard: Yard, put: Put) -> None:
    put("ready", expires_ms=int(yard.now_s() * 1000) + 3_600_000)
    put("delayed", eta_ms=int(yard.now_s() * 1000) + 3_600_000)
    for job_id in ("ready", "delayed"):
        assert yard.cancel(job_id, "not wanted", terminate=False) == "cancelled"
        assert yard.cancel(job_id, "again", terminate=True) == "ended"
        assert ends(yard)[f"end:{job_id}"]["reason"] == "not wanted"
    assert yard.depth(["cpu"])["cpu"].total == 0
    assert claim(yard) == []


def test_cancel_spares_a_running_job_unless_told_to_end_it(yard: Yard, put: Put) -> None:
    put("j")
    job = one(yard)
    yard.start(job, started_s=1, celery="", expires_s=0)
    heard = yard.pubsub()
    heard.subscribe(keys.CONTROL)
    heard.get_message(timeout=1)
    assert yard.cancel("j", "why", terminate=False) == "running"
    assert yard.cancel("j", "why", terminate=True) == "stopping"
    message = heard.get_message(timeout=5)
    assert message is not None
    assert message["data"] == b"n1 j"
    heard.close()
    assert yard.record("j").cancelling


def test_cancel_of_a_job_that_has_not_started_yet_stops_it(yard: Yard, put: Put) -> None:
    put("j")
    one(yard)
    assert yard.cancel("j", "why", terminate=False) == "stopping"


def test_cancel_of_an_ended_job_changes_nothing(yard: Yard, put: Put) -> None:
    put("j")
    settle(yard, one(yard))
    assert yard.cancel("j", "why", terminate=True) == "ended"
    assert yard.record("j").state == "SUCCEEDED"


# -- outbox


def test_finish_ends_a_job_outside_a_node_once(yard: Yard, put: Put) -> None:
    put("j")
    yard.cancel("j", "why", terminate=False)
    effects = [("LPUSH", ("next", "step"))]
    assert yard.finish("j", State.FAILED, {"reason": "why", "ended": "5000"}, effects, retention_s=KEEP_S)
    assert not yard.finish("j", State.FAILED, {"reason": "x"}, effects, retention_s=KEEP_S)
    record = yard.record("j")
    assert (record.state, record.reason, record.ended) == ("FAILED", "why", 5.0)
    assert yard.redis.llen("next") == 1
    assert 0 < yard.redis.ttl(keys.job("j")) <= KEEP_S
    nothing_left(yard)


def part(base: str, member: str, index: int, value: str) -> tuple[str, tuple[Any, ...]]:
    entry = json.dumps({"job": member, "member": {}})
    return "PART", (base, member, value, "1", str(index), "1000", "1000", entry)


def test_the_last_part_of_a_chord_leaves_its_body_in_the_outbox_once(yard: Yard, put: Put) -> None:
    base = "celery-taskset-meta-g"
    yard.redis.set(f"{base}.s", 2)
    jobs = [put() for _ in range(2)]
    held = {j.id: j for j in claim(yard)}
    assert settle(yard, held[jobs[1]], State.SUCCEEDED, [part(base, jobs[1], 1, "second")])
    assert ends(yard) == {}
    for _ in range(2):
        assert settle(yard, held[jobs[0]], State.SUCCEEDED, [part(base, jobs[0], 0, "first")])
    entry = ends(yard)[f"body:{base}"]
    assert entry["n"] == 2
    assert yard.redis.zrange(f"{base}.j", 0, -1) == [b"first", b"second"]  # in group order
    assert yard.redis.get(f"{base}.c") == b"done"
    assert yard.redis.exists(f"{base}.s") == 0  # no stock worker can send the body again
    assert yard.deliver(f"body:{base}", [("LPUSH", ("theirs", "body"))])
    assert not yard.deliver(f"body:{base}", [("LPUSH", ("theirs", "body"))])
    assert yard.redis.llen("theirs") == 1


def test_a_part_that_comes_after_the_chord_was_completed_is_ignored(yard: Yard, put: Put) -> None:
    base = "celery-taskset-meta-g"
    yard.redis.set(f"{base}.c", "done")
    put("j")
    assert settle(yard, one(yard), State.SUCCEEDED, [part(base, "j", 0, "x")])
    assert ends(yard) == {}
    assert yard.redis.exists(f"{base}.j") == 0


def test_all_of_a_long_outbox_is_seen(yard: Yard, put: Put) -> None:
    ids = {f"end:{put(kind='end', reason='x')}" for _ in range(500)}
    seen: set[str] = set()
    cursor, first = 0, True
    while cursor or first:
        first = False
        cursor, found = yard.outbox(cursor)
        seen |= found.keys()
    assert seen == ids


# -- the server


def test_depth_counts_lists_index_and_delayed(yard: Yard, put: Put) -> None:
    put()
    put(eta_ms=int(yard.now_s() * 1000) + 3_600_000)
    for priority in (0, 3, 5):
        yard.redis.lpush(keys.priority_list("cpu", priority), "x")
    found = yard.depth(["cpu", "other"])
    assert (found["cpu"].lists, found["cpu"].index, found["cpu"].delayed, found["cpu"].total) == (3, 1, 1, 5)
    assert found["other"].total == 0


def test_functions_that_redis_has_lost_are_loaded_again(fresh_redis_url: str) -> None:
    yard = Yard(fresh_redis_url, RING)
    yard.redis.function_flush()
    assert yard.depth(["cpu"])["cpu"].total == 0


def test_a_redis_that_evicts_is_refused(own_redis: RedisServer) -> None:
    client = redis.Redis.from_url(own_redis.url())
    client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(InvalidConfig, match="noeviction"):
        Yard(own_redis.url(), RING).prepare()


def test_a_redis_that_is_away_is_said_to_be(own_redis: RedisServer) -> None:
    yard = Yard(own_redis.url(), RING)
    yard.prepare()
    own_redis.kill9()
    with pytest.raises(BrokerUnavailable):
        yard.depth(["cpu"])
    with pytest.raises(BrokerUnavailable):
        yard.record("j")
    own_redis.start()
    assert yard.depth(["cpu"])["cpu"].total == 0


def test_another_yards_keys_are_refused(yard: Yard) -> None:
    with pytest.raises(InvalidConfig, match="key file"):
        Yard(yard.url, KeyRing.new()).prepare()
