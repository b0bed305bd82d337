"""The ledger of a node against a plain model: jobs come, end, upload, come back and go, in any order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from batchyard.worker.ledger import Allocation, Demand, Ledger

JOBS = st.sampled_from("abcde")
TOKENS = st.sampled_from(["1", "2"])
DEMANDS = st.builds(
    Demand,
    vcpus=st.sampled_from([0.25, 1.0, 2.0]),
    memory_mib=st.sampled_from([0, 100, 400]),
    disk_gib=st.sampled_from([0.0, 1.5, 4.0]),
    gpus=st.integers(0, 2),
)


class Books(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(vcpus=4, memory_mib=1000, disk_gib=8, gpus=("x", "y", "z"))
        self.held: dict[str, Allocation] = {}

    @rule(job=JOBS, token=TOKENS, demand=DEMANDS)
    def reserve(self, job: str, token: str, demand: Demand) -> None:
        got, before = self.ledger.reserve(job, demand, token=token), self.held.get(job)
        if before is not None and (not before.ended or before.token == token):
            assert got is not None
            assert got == replace(before, token=token), "what is accounted keeps what it has"
        elif got is None:
            assert not self._room_for(job, demand), "what fits is given"
            return
        else:
            assert (got.demand, len(got.gpus), got.ended) == (demand, demand.gpus, False)
            assert self._room_for(job, demand)
        self.held[job] = got

    @rule(job=JOBS, token=TOKENS)
    def end_container(self, job: str, token: str) -> None:
        self.ledger.keep_disk(job, token=token)
        held = self.held.get(job)
        if held is not None and held.token == token:
            disk = Demand(vcpus=0, memory_mib=0, disk_gib=held.demand.disk_gib)
            self.held[job] = replace(held, demand=disk, gpus=(), ended=True)

    @rule(job=JOBS, token=TOKENS)
    def release(self, job: str, token: str) -> None:
        self.ledger.release(job, token=token)
        if job in self.held and self.held[job].token == token:
            del self.held[job]

    def _room_for(self, job: str, demand: Demand) -> bool:
        others = [one for name, one in self.held.items() if name != job]
        return (
            sum(one.demand.vcpus for one in others) + demand.vcpus <= 4
            and sum(one.demand.memory_mib for one in others) + demand.memory_mib <= 1000
            and sum(one.demand.disk_gib for one in others) + demand.disk_gib <= 8
            and sum(len(one.gpus) for one in others) + demand.gpus <= 3
        )

    @invariant()
    def never_more_than_there_is(self) -> None:
        assert self.ledger.held() == self.held
        gpus = [gpu for one in self.held.values() for gpu in one.gpus]
        assert len(gpus) == len(set(gpus)), "a GPU is one job's alone"
        free, all_ = self.ledger.free(), self.held.values()
        assert free.vcpus_milli == 4000 - 1000 * sum(one.demand.vcpus for one in all_) >= 0
        assert free.memory_mib == 1000 - sum(one.demand.memory_mib for one in all_) >= 0
        assert free.disk_mib == 8192 - 1024 * sum(one.demand.disk_gib for one in all_) >= 0
        assert free.gpus == 3 - len(gpus) >= 0

    def teardown(self) -> None:
        for job in "abcde":
            for token in "12":
                self.ledger.keep_disk(job, token=token)
                self.ledger.release(job, token=token)
        assert self.ledger.free() == self.ledger.capacity


TestLedger = Books.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=30)
