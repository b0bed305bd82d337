"""Histories with arrays among the jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from batchyard.broker.children import Children

from .arrays_model import ArrayScheduler
from .machine import JOBS, Histories
from .world import AT_ONCE, LEASE_S, QUEUES

CHUNK = 2
ARRAYS = st.builds(
    lambda about, **more: {**about, **more},
    JOBS,
    size=st.integers(2, 5),
    sequential=st.sampled_from([None, None, False, True]),
    waits=st.sampled_from(["", "", "arrays", "arrays", "jobs", "jobs arrays", "any arrays"]),
)


class ArrayHistories(Histories):
    """Children are made, told and let go in chunks of CHUNK."""

    replace: ClassVar[Mapping[str, str]] = {
        **Histories.replace,
        "SPAWNED, TOLD, KEPT = 64, 40, 128": f"SPAWNED, TOLD, KEPT = {CHUNK}, {CHUNK}, {CHUNK}",
    }
    model: ArrayScheduler

    def new_model(self) -> ArrayScheduler:
        return ArrayScheduler(chunk=CHUNK, queues=QUEUES, lease_ms=int(LEASE_S * 1000), at_once=AT_ONCE)

    def known(self) -> list[str]:
        sizes = {i: job.sent.array for i, job in self.model.jobs.items()} | {s.id: s.array for s in self.model.lists}
        return sorted({*sizes, *(f"{i}:{index}" for i, size in sizes.items() for index in range(size))})

    def arrays(self) -> dict[str, int]:
        """Sizes of the arrays of which there is a record or a message."""
        sizes = {i: job.sent.array for i, job in self.model.jobs.items()} | {s.id: s.array for s in self.model.lists}
        return {i: size for i, size in sorted(sizes.items()) if size}

    def push_first(self, data: st.DataObject) -> None:
        for one in data.draw(st.lists(ARRAYS, min_size=1, max_size=3)):
            self._push_array(data, one)
        super().push_first(data)

    @rule(about=st.lists(ARRAYS, min_size=1, max_size=2), data=st.data(), at_once=st.booleans())
    def submit_arrays(self, about: list[dict[str, Any]], data: st.DataObject, at_once: bool) -> None:
        for one in about:
            self._push_array(data, one)
        if at_once:
            self.world.take_in(0)

    def _push_array(self, data: st.DataObject, about: dict[str, Any]) -> None:
        """waits: of what it waits, which may be no array of its size, or a child."""
        waits, size, sequential = (about[what] for what in ("waits", "size", "sequential"))
        depends, n_to_n = {}, {}
        if "jobs" in waits and (known := self.known()):
            ids = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True))
            depends = {i: data.draw(st.booleans()) for i in ids}
        if "arrays" in waits and (sizes := {i: n for i, n in self.arrays().items() if i not in depends}):
            ids = data.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=2, unique=True))
            n_to_n = {i: data.draw(st.booleans()) for i in ids}
            size = size if "any" in waits else sizes[ids[0]]
        sent = self.new_job({k: about[k] for k in about if k not in {"waits", "size", "sequential"}}, depends)
        self.world.push(replace(sent, array=size, n_to_n=n_to_n, sequential=sequential))
        self.told["arrays"] += 1

    @precondition(lambda self: self.model.duties or self.model.child_ends)
    @rule(data=st.data(), most=st.integers(1, 3))
    def a_controller_dies_after_a_chunk(self, data: st.DataObject, most: int) -> None:
        duties = sorted(self.model.duties)
        if duties:
            job_id = data.draw(st.sampled_from(duties))
            assert Children(self.world.yard).step(job_id) == self.model.work_on(job_id)
            self.told["chunks"] += 1
        assert Children(self.world.yard).end(most) == bool(self.model.end_children(most))

    @precondition(lambda self: self.arrays())
    @rule(data=st.data(), terminate=st.booleans(), held=st.booleans(), told=st.booleans())
    def cancel_an_array_or_a_child(self, data: st.DataObject, terminate: bool, held: bool, told: bool) -> None:
        """held: an array of which nodes hold children, if there is one. told: a controller tells them at once."""
        sizes = self.arrays()
        on_nodes = {i.partition(":")[0] for node in self.world.nodes.values() for i in node.held} & sizes.keys()
        job_id = data.draw(st.sampled_from(sorted(on_nodes if held and on_nodes else sizes)))
        child = data.draw(st.sampled_from([None, None, *range(sizes[job_id])]))
        self.world.cancel(job_id if child is None else f"{job_id}:{child}", terminate=terminate)
        if told:
            self.world.empty_outbox(0, late=False)
        self.told["cancels of arrays"] += child is None
        self.told["cancels of children"] += child is not None

    def run_to_the_end(self) -> None:
        super().run_to_the_end()
        for job in self.model.jobs.values():
            if job.spawned is not None:
                assert job.spawned == job.sent.array
                states = {child.state for child in self.model.jobs.values() if child.parent is job}
                assert states == {"SUCCEEDED"} if job.state == "SUCCEEDED" else "FAILED" in states
                self.told[f"arrays {job.state}"] += 1
