"""The benchmarks of swaps, memory and neighbours: what they count, and that they see what goes wrong."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.serving import asks, beside, models, openloop, stage, storm, swap
from benchmarks.serving.asks import Form
from benchmarks.serving.beside import Moment
from benchmarks.serving.openloop import Trace
from benchmarks.serving.storm import Log
from benchmarks.serving.witness import Case, Jury, Rest, Tally
from policies.errors import PermanentError
from policies.wire import digest_bytes

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def stub(answer: Callable[[bytes, int], bytes | None]) -> Iterator[tuple[str, int]]:
    """Serve HTTP: the n-th request gets ``answer(request, n)``; None closes its connection."""
    listener, lock = socket.create_server(("127.0.0.1", 0)), threading.Lock()
    count = [0]

    def one(connection: socket.socket) -> None:
        buffer = b""
        with connection, contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                buffer += part
                size = openloop.answer_size(buffer)
                if size is None or len(buffer) < size:
                    continue
                with lock:
                    said, count[0] = answer(buffer, count[0]), count[0] + 1
                if said is None:
                    return
                buffer = b""
                connection.sendall(said)

    def accept() -> None:
        # Closing it ends the wait.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(60)
        listener.close()


def loop(address: tuple[str, int], total: int) -> Trace:
    client = openloop._Client(*address, b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", total)
    due = client.run(1000.0)
    return Trace(due, client.sent, client.done, client.status)


# -- the open loop ----------------------------------------------------------------------------------------


def test_every_request_is_due_in_its_turn_and_sent_no_sooner() -> None:
    with stub(lambda *_: OK) as address:
        trace = loop(address, 200)
    assert trace.lost == 0
    assert np.allclose(np.diff(trace.due), 0.001)
    assert (trace.sent >= trace.due).all()
    assert (trace.done >= trace.sent).all()


def test_what_a_stall_delays_is_late_by_all_of_it_though_it_was_sent_late_itself() -> None:
    moments = np.arange(100) / 1000
    # The server stands still from 0.010 to 0.060, and the client can send nothing meanwhile.
    sent = np.where((moments >= 0.010) & (moments < 0.060), 0.060, moments)
    trace = Trace(moments, sent, sent + 0.0001, np.full(100, 200))
    assert trace.ms(1.0) == pytest.approx(50.1)
    assert (trace.done - trace.sent).max() == pytest.approx(0.0001)


def test_refused_requests_and_a_closed_connection_are_lost_and_the_loop_ends() -> None:
    answers = {10: BUSY, 20: None}
    with stub(lambda _, number: answers.get(number, OK)) as address:
        trace = loop(address, 100)
    assert trace.lost == 2
    assert np.isnan(trace.done).sum() == 1


def test_an_answer_too_many_is_an_error() -> None:
    with (
        stub(lambda *_: OK + OK) as address,
        pytest.raises(PermanentError, match="one answer to one request"),
    ):
        loop(address, 10)


# -- witnesses --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of([models.make_bundle("mlp", seed) for seed in range(2)], (0, 1))


def answer(case: Case, image: int, generation: int, form: Form, flip: bool = False) -> bytes:
    """Return what a right server says, or one bit of it turned."""
    logits = bytearray(case.logits[generation % 2, image].tobytes())
    logits[0] ^= flip
    numbers = np.frombuffer(bytes(logits), "<f4")
    if form is Form.JSON:
        data = ",".join(repr(float(number)) for number in numbers)
        head, raw = f'{{"model_version":"{generation}","outputs":[{{"data":[{data}]}}]}}'.encode(), b""
        extra = ""
    else:
        head, raw = f'{{"model_version":"{generation}","outputs":[{{}}]}}'.encode(), bytes(logits)
        extra = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return f"HTTP/1.1 200 OK\r\n{extra}Content-Length: {len(head) + len(raw)}\r\n\r\n".encode() + head + raw


def witness(case: Case, form: Form, said: Callable[[int, int], bytes | None], count: int) -> Tally:
    """Let a witness ask a stub, which knows the image by the request that comes."""
    requests = [openloop.raw(asks.ask(form, "mlp", x[None])) for x in case.images]
    with (
        stub(lambda request, number: said(requests.index(request), number)) as (host, port),
        contextlib.closing(Rest(f"{host}:{port}", form, case)) as rest,
    ):
        return rest.run(count)


@pytest.mark.parametrize("form", [Form.JSON, Form.BINARY])
def test_right_answers_are_right_over_a_swap(case: Case, form: Form) -> None:
    tally = witness(case, form, lambda image, _: answer(case, image, 1, form), 100)
    assert (tally.right, tally.asked, tally.examples) == (100, 100, [])
    assert set(tally.first_seen) == {1}


@pytest.mark.parametrize("form", [Form.JSON, Form.BINARY])
def test_one_bit_in_one_answer_is_seen(case: Case, form: Form) -> None:
    tally = witness(case, form, lambda image, n: answer(case, image, 1, form, flip=n == 50), 100)
    assert (tally.right, tally.wrong, tally.lost) == (99, 1, 0)
    assert "generation 1: expected" in tally.examples[0]


def test_the_numbers_of_one_generation_under_the_name_of_another_are_seen(case: Case) -> None:
    mislabelled = answer(case, 0, 1, Form.BINARY).replace(b'"model_version":"1"', b'"model_version":"2"')
    tally = witness(
        case,
        Form.BINARY,
        lambda image, n: mislabelled if image == 0 else answer(case, image, 1, Form.BINARY),
        32,
    )
    assert tally.wrong >= 2


def test_an_answer_that_goes_back_to_an_older_generation_is_wrong(case: Case) -> None:
    tally = witness(
        case, Form.BINARY, lambda image, n: answer(case, image, 3 if n < 50 else 2, Form.BINARY), 100
    )
    # Each connection goes back once at most.
    assert 1 <= tally.wrong <= 8
    assert "generation 2 after 3" in tally.examples


def test_a_closed_connection_loses_its_request_and_the_others_go_on(case: Case) -> None:
    tally = witness(
        case, Form.BINARY, lambda image, n: None if n == 10 else answer(case, image, 1, Form.BINARY), 100
    )
    assert (tally.right, tally.lost) == (99, 1)


def test_what_grpc_answers_is_judged_alike(case: Case) -> None:
    jury = Jury(case)
    right = case.logits[1, 5].tobytes()
    jury.judge(5, 1, right, 0.0)
    jury.judge(5, 1, bytes([right[0] ^ 1]) + right[1:], 0.0)
    assert (jury.tally.right, jury.tally.wrong) == (1, 1)


# -- verdicts ---------------------------------------------------------------------------------------------


def told(**other: object) -> list[bool | None]:
    tally = Tally(right=1_000_000)
    for name, value in other.items():
        setattr(tally, name, value)
    log = Log(
        {generation: float(generation) for generation in range(1, 300)},
        {generation: generation + 0.5 for generation in range(1, 300)},
    )
    return [row.met for row in storm.rows({Form.BINARY: tally}, log, storm.REQUESTS)]


def test_a_whole_storm_without_loss_meets_its_targets() -> None:
    assert told() == [True, True]


def test_one_lost_or_refused_or_wrong_or_late_answer_misses_them() -> None:
    assert told(lost=1) == [False, True]
    assert told(refused={"503": 1}) == [False, True]
    assert told(wrong=1) == [True, False]
    assert told(last_asked={7: 8.6}) == [True, False]
    assert told(first_seen={7: 6.9}) == [True, False]


def test_a_short_storm_can_miss_a_target_and_never_meet_it() -> None:
    log = Log({1: 1.0}, {1: 1.5})
    assert [row.met for row in storm.rows({Form.JSON: Tally(right=10)}, log, 10)] == [None, None]
    assert [row.met for row in storm.rows({Form.JSON: Tally(right=9, lost=1)}, log, 10)] == [False, None]


def test_an_altered_bundle_is_not_what_its_digest_says(tmp_path: Path) -> None:
    raw = models.make_bundle("mlp")
    claimed = storm.alter(tmp_path, stage.put(tmp_path, raw)).removeprefix("sha256:")
    came = (tmp_path / "blobs" / "sha256" / claimed[:2] / claimed[2:]).read_bytes()
    assert digest_bytes(came) != f"sha256:{claimed}"
    assert sum(one != other for one, other in zip(came, raw, strict=True)) == 1


def test_the_large_model_has_540_nodes_of_work_and_7_9_million_parameters() -> None:
    proto = onnx.load_from_string(swap.large(0))
    assert (
        sum(node.name == "" and node.op_type in {"MatMul", "Relu", "Add"} for node in proto.graph.node) == 542
    )
    assert 7.9e6 < models.params(proto) < 8.1e6


def test_a_search_is_judged_by_both_its_ceilings() -> None:
    def met(*pairs: tuple[float, float]) -> list[bool | None]:
        idle = [Moment(before, 0, 0.0, 0.0) for before, _ in pairs]
        busy = [Moment(after, 0, 0.5, 0.0) for _, after in pairs]
        rows = beside.rows({"idle": idle} | dict.fromkeys(beside.PHASES[1:], busy))
        return [row.met for row in rows]

    assert met((0.3, 0.4)) == [True, None, True, None]
    assert met((0.3, 0.5)) == [False, None, False, None], "more than 1.5 times idle"
    assert met((0.9, 1.1)) == [False, None, False, None], "more than a millisecond"
