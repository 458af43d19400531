"""The camera against two small servers: its pace, its groups, its labels, its drift, and its failures."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.demo.conftest import Doors, http

Start = Callable[..., "Filming"]


class Filming:
    """A camera at work."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    def tell(self, command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((command if isinstance(command, str) else json.dumps(command)) + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
        """Close its standard input; return its summary, its records and its events."""
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        events = [json.loads(line) for line in out.splitlines()]
        records = [json.loads(line) for line in self._log.read_text().splitlines()]
        return events[-1], records, events


@pytest.fixture
def film(doors: Doors, digits: Path, example: Path, tmp_path: Path) -> Iterator[Start]:
    made: list[Filming] = []

    def start(*more: str) -> Filming:
        log = tmp_path / "requests.jsonl"
        argv = [
            *(sys.executable, str(example / "camera.py"), "--commands", "--url", doors.url),
            *("--labels", doors.url, "--data", str(digits), "--first", "0", "--last", "40"),
            *("--rate", "400", "--log", str(log), "--label-delay-s", "0", "0.1", *more),
        ]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        made.append(Filming(process, log))
        return made[-1]

    yield start
    for filming in made:
        if filming.process.poll() is None:
            filming.process.kill()
        filming.process.communicate()


def test_every_meter_is_read_once_a_round_in_another_order(doors: Doors, film: Start) -> None:
    filming = film()
    doors.wait(120)
    summary, records, _ = filming.end()
    groups = [request["parameters"]["group"] for request in doors.requests]
    assert Counter(groups[:80]) == dict.fromkeys((f"meter-{row}" for row in range(40)), 2)
    assert groups[:40] != groups[40:80]
    assert len({request["id"] for request in doors.requests}) == len(doors.requests)
    assert summary["sent"] == len(records) == len(doors.requests)
    assert summary["failed"] == 0
    assert [record["n"] for record in sorted(records, key=lambda r: r["n"])] == list(range(len(records)))


def test_requests_are_due_at_the_rate_and_carry_what_the_protocol_asks(doors: Doors, film: Start) -> None:
    filming = film("--rate", "200")
    doors.wait(60)
    _, records, _ = filming.end()
    at = sorted(record["at"] for record in records)
    assert np.allclose(np.diff(at), 1 / 200, atol=2e-4)
    (tensor,) = doors.requests[0]["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("image", "UINT8", [1, 28, 28])
    assert {len(pixels) for pixels in doors.pictures} == {784}


def test_labels_follow_by_request_id_and_are_the_true_ones(doors: Doors, film: Start) -> None:
    filming = film()
    doors.wait(900)
    filming.end()
    assert len(doors.labels) >= 400
    truth = {r["id"]: int(r["parameters"]["group"].removeprefix("meter-")) // 2 % 10 for r in doors.requests}
    assert all(truth[name] == label for name, label in doors.labels.items())


@pytest.mark.parametrize(
    "answer",
    [
        http(500, b'{"error": "no"}'),
        http(200, b'{"id": "somebody-else", "model_version": "1", "outputs": [{"data": [1, 0]}]}'),
        http(200, b"not json"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nshort",
        b"garbage\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_a_failure_that_is_never_sent_again(
    doors: Doors, film: Start, answer: bytes
) -> None:
    doors.refuse = lambda n: answer if n == 30 else None
    filming = film()
    doors.wait(120)
    summary, records, events = filming.end()
    assert summary["failed"] >= 1
    assert sum(record["generation"] is None for record in records) == summary["failed"]
    assert len(doors.requests) == summary["sent"]
    assert any(event["event"] == "problem" for event in events)


def test_it_drifts_when_told_and_nothing_else_changes(doors: Doors, film: Start) -> None:
    filming = film()
    doors.wait(100)
    filming.tell("nonsense")
    filming.tell({"drift": {"kind": "tilt-fade", "strength": 1.0, "ramp_s": 0.2}})
    doors.wait(600)
    _, records, events = filming.end()
    level = {record["n"]: record["level"] for record in records}
    assert level[0] == level[50] == 0.0
    assert level[max(level)] == 1.0
    assert sorted(level.items()) == sorted(level.items(), key=lambda pair: (pair[1], pair[0]))
    (told,) = [event for event in events if event["event"] == "drift"]
    assert told["n"] == min(n for n, value in level.items() if value > 0)
    before, after = (np.frombuffer(doors.pictures[k], np.uint8).mean() for k in (0, -1))
    assert after < 0.8 * before
    assert [event["what"] for event in events if event["event"] == "problem"] == ["command not understood"]
    assert set(doors.requests[0]) == set(doors.requests[-1])


def test_a_stop_command_and_a_term_signal_end_it_with_a_summary(doors: Doors, film: Start) -> None:
    stopped, killed = film(), film("--seed", "2")
    doors.wait(40)
    stopped.tell({"stop": True})
    killed.process.send_signal(signal.SIGTERM)
    for filming in (stopped, killed):
        assert filming.process.wait(30) == 0
