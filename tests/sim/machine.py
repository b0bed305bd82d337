"""Random histories: producers, nodes, two controllers, people and the clock, in any order and as often as they like.

After every act Redis holds what the model holds. A history ends with everything run to its end, once, and nothing left
behind. What else there is to a scheduler comes as a subclass with rules of its own, on a model and a world that know
what these mean.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchyard.broker import keys

from .looking import seen, wanted
from .model import Scheduler, Sent
from .sending import AFTER, followed
from .world import AT_ONCE, LEASE_S, NODES, QUEUES, Node, World

JOBS = st.fixed_dictionaries(
    {
        "queue": st.sampled_from(QUEUES),
        "demand": st.sampled_from(
            [
                (250, 64, 0, 0),
                (500, 512, 0, 1024),
                (1000, 256, 0, 0),
                (1000, 2048, 0, 512),
                (1500, 300, 0, 0),
                (2000, 1024, 1, 2048),
                (3000, 512, 0, 8192),
                (4000, 4096, 2, 16384),
            ]
        ),
        "priority": st.sampled_from([0, 0, 3, 5, 9]),
        "eta_s": st.sampled_from([0] * 8 + [5, 60, 4000]),
        "expires_s": st.sampled_from([0] * 9 + [-1, 10, 100, 100]),
        "interruptions": st.sampled_from([10, 0, 1]),
        "refused": st.sampled_from([False] * 12 + [True]),
    }
)
OUTCOMES = st.sampled_from(["SUCCESS", "SUCCESS", "FAILURE", "REVOKED"])
SERVED = st.sampled_from([QUEUES, QUEUES, QUEUES[:1], QUEUES[1:]])
CONSTANTS = {keys.SEQUENCE, keys.REAPER, keys.KEY_MARK, "by:events", *(f"by:states:{queue}" for queue in QUEUES)}


class Histories(RuleBasedStateMachine):
    """One yard. url: its Redis, which is this machine's alone; told: what has happened in all histories."""

    url: ClassVar[str] = ""
    told: ClassVar[Counter[str]] = Counter()
    replace: ClassVar[Mapping[str, str]] = {"AT_ONCE = 64": f"AT_ONCE = {AT_ONCE}"}
    world_type: ClassVar[type[World]] = World
    world: World

    # -- beginning
    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self._numbers = itertools.count()  # the same in each run of a history
        self.world = self.world_type(self.url, self.new_model(), self.told, self.replace)
        self.model = self.world.model
        self.ended: set[str] = set()
        self.followed: Counter[tuple[str, str]] = Counter()
        self.told["histories"] += 1
        self.push_first(data)
        self.world.take_in(0)

    def push_first(self, data: st.DataObject) -> None:
        for one in data.draw(st.lists(JOBS, min_size=3, max_size=8)):
            self.world.push(self.new_job(one, {}))

    def new_model(self) -> Scheduler:
        return Scheduler(queues=QUEUES, lease_ms=int(LEASE_S * 1000), at_once=AT_ONCE)

    def new_job(self, about: Mapping[str, Any], depends: Mapping[str, bool]) -> Sent:
        """about: one of JOBS, with times from now."""
        fields: dict[str, Any] = {k: v for k, v in about.items() if k not in {"eta_s", "expires_s"}}
        for what in ("eta", "expires"):
            seconds = about[f"{what}_s"]
            fields[f"{what}_ms"] = self.model.now_ms + seconds * 1000 if seconds else 0
        return Sent(id=f"j{next(self._numbers):03}", depends=depends, **fields)

    def known(self) -> list[str]:
        """Ids of all jobs of which there is a record or a message."""
        return sorted({*self.model.jobs, *(sent.id for sent in self.model.lists)})

    # -- producers
    @rule(data=st.data(), about=st.lists(JOBS, min_size=1, max_size=3), at_once=st.booleans())
    def submit(self, data: st.DataObject, about: list[dict[str, Any]], at_once: bool) -> None:
        for one in about:
            known = self.known()
            parents = data.draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
            self.world.push(self.new_job(one, {parent: data.draw(st.booleans()) for parent in parents}))
        if at_once:
            self.world.take_in(0)

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data())
    def send_the_same_message_again(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.world.sent)))
        if job_id in self.known():  # else its record has expired, and it is another job of the same id
            self.world.push_again(job_id)

    @rule(which=st.integers(0, 1))
    def take_in(self, which: int) -> None:
        self.world.take_in(which)

    # -- nodes
    @rule(data=st.data(), acts=st.integers(2, 6))
    def nodes_work(self, data: st.DataObject, acts: int) -> None:
        for _ in range(acts):
            awake = sorted(name for name, node in self.world.nodes.items() if node.alive)
            if awake:
                self._act(data, self.world.nodes[data.draw(st.sampled_from(awake))])
                self.redis_holds_what_the_model_holds()

    @rule(data=st.data(), acts=st.integers(2, 6))
    def nodes_work_on(self, data: st.DataObject, acts: int) -> None:
        """There is as much of this as of all others."""
        self.nodes_work(data, acts)

    @rule(data=st.data(), acts=st.integers(2, 6))
    def nodes_go_on_working(self, data: st.DataObject, acts: int) -> None:
        self.nodes_work(data, acts)

    def _act(self, data: st.DataObject, node: Node) -> None:
        choice = [
            "claim",
            "claim",
            "ask again",
            "renew",
            "finish",
            "finish",
            "start",
            "start",
            "give back",
            "give back",
        ]
        what = data.draw(st.sampled_from(choice if node.held else choice[:4]))
        times = data.draw(st.sampled_from([1, 1, 2]))  # 2: the reply was lost, and the call is made again
        if what == "claim":
            self.world.claim(node, data.draw(SERVED), data.draw(st.sampled_from([1, 2, 32])))
            if node.held and data.draw(st.sampled_from([True, False])):
                self.world.start(list(node.held.values()))
        elif what == "ask again":
            if node.last_claim:
                self.world.ask(node)
        elif what == "renew":
            self.world.beat(node)
        elif node.held:
            ids = data.draw(st.lists(st.sampled_from(sorted(node.held)), min_size=1, max_size=4, unique=True))
            jobs = [node.held[i] for i in ids]
            outcomes = [(job, data.draw(OUTCOMES) if what == "finish" else "") for job in jobs]
            why = data.draw(st.sampled_from(["retry", "interruption", "drain"])) if what == "give back" else ""
            for _ in range(times):
                if what == "start":
                    self.world.start(jobs)
                elif what == "finish":
                    self.world.settle(node, outcomes)
                else:
                    self.world.give_back(node, jobs[0], why, data.draw(st.sampled_from([0, 0, 20])))
            for job in jobs if what == "finish" else jobs[: what == "give back"]:
                node.drops(job.id)

    @rule(name=st.sampled_from(sorted(NODES)))
    def a_node_dies(self, name: str) -> None:
        self.told["deaths of nodes"] += self.world.nodes[name].alive
        self.world.nodes[name].alive = False

    @precondition(lambda self: not all(node.alive for node in self.world.nodes.values()))
    @rule(anew=st.booleans())
    def nodes_come_back(self, anew: bool) -> None:
        """Started anew; or they were cut off only, and go on with what they think that they hold."""
        for node in self.world.nodes.values():
            if not node.alive:
                node.alive = True
                if anew:
                    self.world.restart(node)

    @precondition(lambda self: self.world.gone)
    @rule(data=st.data(), what=st.sampled_from(["start", "finish", "give back"]))
    def a_node_that_has_lost_a_lease_tells_all_the_same(self, data: st.DataObject, what: str) -> None:
        node, job = self.world.gone[data.draw(st.integers(0, len(self.world.gone) - 1))]
        if what == "start":
            assert self.world.start([job]) == [False]
        elif what == "finish":
            assert self.world.settle(node, [(job, "SUCCESS")]) == [False]
        else:
            assert not self.world.give_back(node, job, "retry", 0)

    # -- people
    @precondition(lambda self: self.known())
    @rule(data=st.data(), terminate=st.booleans(), times=st.integers(1, 2), held=st.booleans())
    def cancel(self, data: st.DataObject, terminate: bool, times: int, held: bool) -> None:
        on_nodes = sorted({i for node in self.world.nodes.values() for i in node.held} & self.model.jobs.keys())
        job_id = data.draw(st.sampled_from(on_nodes if held and on_nodes else self.known()))
        for _ in range(times):
            self.world.cancel(job_id, terminate=terminate)

    # -- time, and the controllers
    @rule(seconds=st.sampled_from([0.001, 1, 5, 5, 12, 12, 31, 70, 5000, -10]))
    def the_clock_moves(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(data=st.data(), rounds=st.integers(3, 5))
    def a_lease_passes(self, data: st.DataObject, rounds: int) -> None:
        """While the controller looks all the time. Nodes that live renew, but for those that are cut off."""
        silent = data.draw(st.sets(st.sampled_from(sorted(NODES))))
        for _ in range(rounds):
            self.world.pass_time(LEASE_S * 0.4)
            for node in self.world.nodes.values():
                if node.alive and node.name not in silent:
                    self.world.beat(node)
            self.world.tick()

    @rule(which=st.integers(0, 1), what=st.sampled_from(["all", "tick", "outbox", "old outbox", "read"]))
    def a_controller_works(self, which: int, what: str) -> None:
        """Old outbox: it goes on with what it read before it stalled; meanwhile the other has worked."""
        if what in {"all", "tick"}:
            self.world.tick()
        if what in {"all", "outbox", "old outbox"}:
            self.world.empty_outbox(which, late=what == "old outbox")
        if what == "read":
            self.world.read_outbox()

    @precondition(lambda self: any(job.ended for job in self.model.jobs.values()))
    @rule(data=st.data())
    def a_record_expires(self, data: st.DataObject) -> None:
        named = {i.partition(":")[0] for sent in self.model.lists for i in (sent.id, *sent.named)}
        over = sorted(i for i, job in self.model.jobs.items() if self.model.may_vanish(job) and i not in named)
        if over:
            self.world.expire(data.draw(st.sampled_from(over)))

    # -- at every step
    @invariant()
    def redis_holds_what_the_model_holds(self) -> None:
        self.told["looks"] += 1
        there, right = seen(self.world), wanted(self.model)
        wrong = {what: (told, right[what]) for what, told in there.items() if told != right[what]}
        assert not wrong, f"(in Redis, in the model): {wrong}"

    @invariant()
    def no_node_holds_more_than_it_has(self) -> None:
        for node in self.world.nodes.values():
            assert min(node.free()) >= 0

    @invariant()
    def an_end_is_final_and_is_followed_once(self) -> None:
        for line in self.world.redis.lrange(AFTER, 0, -1):
            self.followed[followed(line)] += 1
        self.world.redis.delete(AFTER)
        well = {i: job.state == "SUCCEEDED" for i, job in self.model.jobs.items() if job.ended and not job.parent}
        assert not [i for i in self.ended if i in self.model.jobs and i not in well]
        self.ended |= well.keys()
        assert set(self.followed.values()) <= {1}
        assert sorted(i for i, _ in self.followed) == sorted(self.ended)
        assert all((i, "well" if good else "ill") in self.followed for i, good in well.items())

    # -- the end
    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.run_to_the_end()
            assert self.world.sent.keys() == self.ended
            self.nothing_is_left()
            self.world.close()

    def run_to_the_end(self) -> None:
        for _ in range(20 + 4 * len(self.known())):
            self.world.take_in(0)
            self.world.pass_time(600)
            self.world.tick()
            self.world.empty_outbox(0, late=False)
            for node in self.world.nodes.values():
                self.world.restart(node)
                self.world.claim(node, QUEUES, 32)
                if node.held:
                    self.world.settle(node, [(job, "SUCCESS") for job in node.held.values()])
                node.held, node.demands = {}, {}
            self.redis_holds_what_the_model_holds()
            self.an_end_is_final_and_is_followed_once()
            if not self.model.lists and not self.model.outbox and all(job.ended for job in self.model.jobs.values()):
                return
        raise AssertionError("some jobs do not end")

    def nothing_is_left(self) -> None:
        for job_id in [i for i, job in self.model.jobs.items() if not job.parent]:
            self.world.expire(job_id)
        for name in NODES:
            assert self.world.yard.leave(name)
        for _ in range(3):  # the list of all jobs is looked through in turns
            self.world.tick()
        left = {key.decode() for key in self.world.redis.keys("by:*")}
        assert {key for key in left if self.world.redis.ttl(key) < 0} <= CONSTANTS
        assert not [key for queue in QUEUES for key in keys.priority_lists(queue) if self.world.redis.exists(key)]
