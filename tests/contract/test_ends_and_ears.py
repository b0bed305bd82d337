"""An end comes whatever the producer wrote, and the controller hears whatever was sent before."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.controller import Ear
from batchyard.broker.ending import Outbox
from batchyard.broker.followups import Followups
from batchyard.broker.message import Document, Message
from batchyard.broker.remote import RevokeEar, celery_app
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Free, Incoming, Yard
from yardtest.redis import RedisServer
from yardtest.wait import until

RING = KeyRing.new()
UNTELLABLE = {"id": "j", "task": "batchyard.run", "get": 1, "update": 2, "children": 3, "execution_options": 4}

pytestmark = pytest.mark.system


@pytest.fixture
def yard(fresh_redis_url: str) -> Yard:
    made = Yard(fresh_redis_url, RING)
    made.prepare()
    return made


def test_pushes_are_heard_also_after_a_restart_of_redis(own_redis: RedisServer) -> None:
    made = Yard(own_redis.url(), RING)
    made.prepare()
    own_redis.kill9()
    own_redis.start()
    ear = Ear(made, ["cpu"])
    until(lambda: made.redis.pubsub_numpat() == 2, "it listens")
    made.redis.lpush("cpu", "x")
    began = time.monotonic()
    ear.wait(30)
    assert time.monotonic() - began < 10
    ear.close()


@pytest.fixture
def ear(yard: Yard) -> Iterator[RevokeEar]:
    made = RevokeEar(Yard(yard.url, RING))
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    made.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_a_job_whose_end_cannot_be_told_ends(yard: Yard) -> None:
    sent = Message(headers=UNTELLABLE, properties={}, body="[[], {}, {}]")
    document = RING.seal(Document(message=sent, job=None).dumps(), b"j")
    one = Incoming(list_key="cpu", raw=b"m", kind="end", id="j", queue="cpu", reason="refused", document=document)
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1
    outbox = Outbox(yard, Followups(yard.url, result_expires_s=100), retention_s=1000)
    assert outbox.run() == 1
    record = yard.record("j")
    assert record.state == "FAILED"
    assert record.reason.startswith("refused; what follows the job cannot be told")
    assert yard.redis.hlen(keys.OUTBOX) == 0


def test_a_broadcast_that_is_no_command_does_not_make_the_controller_deaf(yard: Yard, ear: RevokeEar) -> None:
    app = celery_app(yard.url)

    def answer(job_id: str) -> list[dict[str, Any]]:
        return app.control.revoke(job_id, reply=True, timeout=0.5) or []

    until(lambda: answer("before"), "the controller listens")
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        for body in ("W10=", "eyJtZXRob2QiOiB7fX0=", "e30="):  # [], {"method": {}}, {}
            properties = {"body_encoding": "base64", "delivery_tag": "x", "delivery_info": {}}
            about = {"content-type": "application/json", "content-encoding": "utf-8", "headers": {}}
            channel._put_fanout("celery.pidbox", {"body": body, **about, "properties": properties}, "")
    (reply,) = until(lambda: answer("after"), "the controller hears the next revoke")
    assert reply[ear.name]["ok"] == {"after": "stored"}


ROOM = Free(vcpus=1, memory_mib=8, gpus=0, disk_gib=1)


def _submit(yard: Yard) -> None:
    document = RING.seal(Document(message=Message(headers={"id": "j"}, properties={}, body=""), job={}).dumps(), b"j")
    one = Incoming(list_key="cpu", raw=b"m", kind="job", id="j", queue="cpu", vcpus=1, memory_mib=8, document=document)
    yard.redis.lpush("cpu", one.raw)
    assert yard.intake([one]) == 1


def test_a_job_that_loses_its_node_each_time_ends_with_that_reason(yard: Yard) -> None:
    _submit(yard)
    yard.tick(["cpu"], lease_s=60)
    for n in range(11):
        assert len(yard.claim("n1", f"c{n}", ROOM, ["cpu"], lease_s=60)[1]) == 1
        yard.redis.zadd(keys.LEASES, {"j": 1})
        assert yard.tick(["cpu"], lease_s=60)[0] == 1
    assert yard.claim("n1", "last", ROOM, ["cpu"], lease_s=60)[1] == []
    (entry,) = yard.outbox()[1].values()
    assert "interrupted 11 times" in entry["reason"]
    assert yard.record("j").losses == 11


def test_a_running_job_that_was_revoked_goes_on_but_not_again(yard: Yard) -> None:
    _submit(yard)
    _, (job,) = yard.claim("n1", "c1", ROOM, ["cpu"], lease_s=60)
    assert yard.start(job, started_s=1.0, celery="", expires_s=60)
    assert yard.cancel("j", "revoked", terminate=False) == "running"
    assert yard.renew("n1", {}, {"j": job.token}, lease_s=60) == []
    assert yard.give_back(job, None)
    assert yard.claim("n1", "c2", ROOM, ["cpu"], lease_s=60)[1] == []
    assert [entry["reason"] for entry in yard.outbox()[1].values()] == ["revoked"]
