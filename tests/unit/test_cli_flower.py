"""What Flower is told of jobs, and whom it serves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from batchyard.broker.errors import InvalidConfig
from batchyard.broker.flower import Page, format_task, readable, reason_of, refusal, serve, short


def request(
    method: str = "GET", path: str = "/api/tasks", host: str = "127.0.0.1:5555", **headers: str
) -> HTTPServerRequest:
    connection = SimpleNamespace(context=None, set_close_callback=lambda _: None)
    fields = HTTPHeaders({"Host": host, **{k.replace("_", "-"): v for k, v in headers.items()}})
    return HTTPServerRequest(
        headers=fields,
        connection=connection,  # type: ignore[arg-type]
        start_line=RequestStartLine(method, path, "HTTP/1.1"),
    )


def test_a_producers_arguments_are_cut_down_to_image_and_command() -> None:
    job = {"image": "busybox", "command": ["echo", "x"], "environment": {"PASSWORD": "hunter2"}}
    event = {
        "type": "task-sent",
        "name": "batchyard.run",
        "args": "({'row': 'hunter2'},)",
        "kwargs": repr({"job": job}),
    }
    assert readable(event) == {**event, "args": "", "kwargs": "image=busybox command=echo x"}


@pytest.mark.parametrize(
    "kwargs", ["{'job': {'image': 'x', 'environment': {'A': 'hunter2'…", "{'job': 3}", "(", "[1]", "{}"]
)
def test_arguments_that_cannot_be_read_are_not_shown(kwargs: str) -> None:
    assert short(kwargs) == "…"


def test_events_of_other_tasks_and_of_nodes_stay_as_they_are() -> None:
    other = {"type": "task-sent", "name": "mine.add", "args": "(1, 2)", "kwargs": "{}"}
    beat = {"type": "worker-heartbeat", "hostname": "n1"}
    assert readable(other) is other
    assert readable(beat) is beat
    assert short("image=busybox command=true") == "image=busybox command=true"


def test_a_failed_jobs_reason_stands_where_a_result_does() -> None:
    task = SimpleNamespace(
        name="batchyard.run", result=None, exception="JobFailed('job 1 failed: it broke', {'exit_code': 3})"
    )
    assert format_task(task).result == "it broke"
    assert reason_of("JobFailed('the command ended with exit code 7')") == "the command ended with exit code 7"
    assert reason_of("something else") == "something else"


@pytest.mark.parametrize(
    "asked",
    [
        request(host="evil.example"),
        request(host="evil.example:5555", Sec_Fetch_Site="same-origin"),
        request("POST", "/api/task/revoke/x", Origin="http://evil.example"),
        request("POST", "/api/task/revoke/x", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"),
        request(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors"),
        request("POST", "/api/task/send-task/batchyard.run"),
        request("POST", "/api/task/async-apply/x"),
    ],
)
def test_requests_from_elsewhere_and_new_tasks_are_refused(asked: HTTPServerRequest) -> None:
    assert refusal(asked, Page())


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(host="localhost:5555"),
        request(host="[::1]:5555"),
        request("POST", "/api/task/revoke/x"),
        request("POST", "/api/task/revoke/x", Origin="http://127.0.0.1:5555", Sec_Fetch_Site="same-origin"),
        request(path="/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"),
    ],
)
def test_its_own_pages_tools_and_links_to_it_are_served(asked: HTTPServerRequest) -> None:
    assert refusal(asked, Page()) is None


def test_with_a_password_flower_guards_itself() -> None:
    assert refusal(request("POST", "/api/task/send-task/x", host="yard.example"), Page(auth="u:p")) is None


@pytest.mark.parametrize("page", [Page(address="0.0.0.0"), Page(auth="nopassword")])
def test_an_open_address_needs_a_password(page: Page) -> None:
    with pytest.raises(InvalidConfig, match="BATCHYARD_FLOWER_AUTH"):
        serve("redis://127.0.0.1:1/0", page, on_ready=lambda _: None)
