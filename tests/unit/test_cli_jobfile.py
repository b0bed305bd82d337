"""Jobs from files: what is read, and where an error is said to stand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from batchyard.broker.cli.jobfile import FileJob, read
from batchyard.broker.errors import InvalidConfig, InvalidJob


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "jobs.yaml"


def jobs(path: Path, text: str) -> list[FileJob]:
    path.write_text(text)
    return read(path)


def test_one_job_several_documents_and_lists_are_jobs_in_order(write: Path) -> None:
    assert [j.job["image"] for j in jobs(write, "image: a\n")] == ["a"]
    text = "---\nimage: a\n---\n- image: b\n- {image: c}\n---\n"
    assert [j.job["image"] for j in jobs(write, text)] == ["a", "b", "c"]
    assert [j.job["image"] for j in jobs(write, '[{"image": "a"}, {"image": "b"}]')] == ["a", "b"]


def test_json_with_tabs_is_read_too(write: Path) -> None:
    (one,) = jobs(write, '{\n\t"image": "a",\n\t"user": 1000\n}')
    assert one.job == {"image": "a", "user": "1000"}


def test_stdin_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("image: a"))
    assert read(Path("-"))[0].job == {"image": "a"}


def test_how_a_job_is_sent_is_no_part_of_the_job(write: Path) -> None:
    (one,) = jobs(write, "image: a\nqueue: gpu\npriority: 3\ncountdown_s: 1.5\nexpires_s: 60\n")
    assert one.job == {"image": "a", "priority": 3}
    assert one.sending == {"queue": "gpu", "countdown_s": 1.5, "expires_s": 60}


def test_text_stays_as_it_was_written(write: Path) -> None:
    text = "image: a\nuser: 1000:1000\ncommand: [echo, 007, no, 12:30, 1.10, true]\n"
    text += "environment: {A: on, B: 0755, C: 2026-01-01, D: null}\nvcpus: 1e-1\ntags: {v: 1.10}\n"
    job = jobs(write, text)[0].job
    assert job["command"] == ["echo", "007", "no", "12:30", "1.10", "true"]
    assert job["environment"] == {"A": "on", "B": "0755", "C": "2026-01-01", "D": None}
    assert (job["user"], job["vcpus"], job["tags"]) == ("1000:1000", 0.1, {"v": "1.10"})


def test_anchors_and_merges_work(write: Path) -> None:
    text = "- &a {image: x, vcpus: 2}\n- {<<: *a, vcpus: 1}\n"
    assert [j.job for j in jobs(write, text)] == [{"image": "x", "vcpus": 2}, {"image": "x", "vcpus": 1}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no job"),
        ("# nothing\n---\n", "holds no job"),
        ("image: a\n---\n- 3\n", "line 3: 3 is no job"),
        ("hello", "line 1: 'hello' is no job"),
        ("image: a\nimage: b\n", "line 2: image is there twice"),
        ("image: [a\nqueue: q\n", "line 2: neither JSON nor YAML"),
        ("image: a\nqueue: 3\n", "line 2: queue = 3: must be a queue's name"),
        ("image: a\ncountdown_s: -1\n", "line 2: countdown_s = -1: must be a number of seconds"),
        ("image: a\nexpires_s: soon\n", "line 2: expires_s = 'soon'"),
        ("image: !!python/object:os.system a\n", "line 1: neither JSON nor YAML: could not determine a constructor"),
        ("image: &a [*a]\n", "line 1: this anchor holds itself"),
        ("[" * 5000, "neither JSON nor YAML"),
    ],
)
def test_what_is_no_job_is_refused_with_file_and_line(write: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        jobs(write, text)
    assert str(error.value).startswith(str(write))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("field", "line"),
    [("vcpus", 2), ("inputs./in/a.b.uri", 4), ("inputs./in/c.from", 6), ("command.1", 9), ("nosuch", 1), ("", 1)],
)
def test_an_errors_field_is_found_in_the_file(write: Path, field: str, line: int) -> None:
    text = "image: a\nvcpus: -1\ninputs:\n  /in/a.b: x\n  /in/c:\n    from: t\ncommand:\n- echo\n- 3\n"
    (one,) = jobs(write, text)
    assert str(one.explained(InvalidJob(field, 1, "is wrong"))).startswith(f"{write}, line {line}: job")


def test_a_binary_file_is_refused(write: Path) -> None:
    write.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfig, match="is not text"):
        read(write)
