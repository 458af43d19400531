"""The real process: its doors, its end, its death, and what it takes from the wire."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys

import httpx
import numpy as np
import pytest

from daemon.serving.settings import ServeSettings

INFER = "/v2/models/meter-reader/infer"


def message(x) -> dict:
    return {"inputs": [{"name": "image", "datatype": "UINT8", "shape": list(x.shape), "data": x.tolist()}]}


def infer(server, x, name="a") -> dict:
    return httpx.post(server.base + INFER, json={"id": name, **message(x)}).raise_for_status().json()


def test_sigterm_drains_and_keeps_all_telemetry(forge, process, kit, tmp_path):
    server = process()
    # Two widths of embedding: the records of one of them are held back when the end comes.
    one, two = forge.tiny(seed=1, width=8), forge.tiny(seed=2, width=16)
    server.admin.apply(kit.deployment(1, stable=(1, one), newcomer=(2, two), share=0.5))
    x = kit.digits(20)
    versions = [infer(server, x[n : n + 1], f"r{n}")["model_version"] for n in range(20)]
    assert server.end() == 0
    blocks = kit.read_spool(tmp_path / "s" / "spool", "telemetry")
    generations = sorted(str(generation) for block in blocks for generation in block["generation"])
    assert generations == sorted(versions)
    assert set(versions) == {"1", "2"}
    samples = np.concatenate(kit.read_spool(tmp_path / "s" / "spool", "samples"))
    np.testing.assert_array_equal(samples["input"], x)
    keys = {bytes(key) for block in blocks for key in block["row_key"]}
    assert keys == {bytes(key) for key in samples["row_key"]}
    assert "drained" in "".join(server.log)


def test_a_killed_process_comes_back_as_it_was(forge, process, kit, tmp_path):
    server = process()
    before = server.admin.apply(kit.deployment(4, stable=(2, forge.tiny()))).json()
    infer(server, kit.digits(1))
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    again = process()
    assert again.admin.observed() == before
    assert infer(again, kit.digits(1))["model_version"] == "2"
    assert again.end() == 0
    segments = [path.name for path in sorted((tmp_path / "s" / "spool").glob("telemetry-*.seg"))]
    assert len(segments) == len(set(segments)) >= 1


def test_a_kill_in_the_middle_of_swaps_leaves_the_old_or_the_new(forge, process, kit):
    models = [forge.tiny(seed=seed) for seed in range(2)]
    server = process()
    revision = 1
    for round_ in range(3):
        server.admin.apply(kit.deployment(revision, stable=(revision, models[revision % 2])))
        wanted = kit.deployment(revision + 1, stable=(revision + 1, models[(revision + 1) % 2]))
        request = (
            f"POST /apply HTTP/1.1\r\nhost: x\r\ncontent-length: {len(wanted.model_dump_json())}\r\n\r\n"
        )
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(forge.state / "run" / "serve.sock"))
            raw.sendall(request.encode() + wanted.model_dump_json().encode())
            if round_ == 2:
                raw.recv(1)
            server.end(signal.SIGKILL)
        server = process()
        observed = server.admin.observed()
        assert observed["ready"]
        assert observed["revision"] in ((revision, revision + 1) if round_ < 2 else (revision + 1,))
        x = kit.digits(1)
        logits = np.array(infer(server, x)["outputs"][0]["data"])
        generation = observed["stable"]["generation"]
        np.testing.assert_allclose(logits, models[generation % 2].expected(x)[0][0], atol=1e-3)
        revision = observed["revision"] + 1


def test_the_admin_socket_is_the_owners_alone(process, forge):
    process()
    mode = (forge.state / "run" / "serve.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_second_process_of_the_same_state_exits_with_a_clear_word(process, forge):
    first = process()
    command = [sys.executable, "-m", "daemon.serving.main", "--state", str(forge.state)]
    second = subprocess.run(
        [*command, "--model", "meter-reader", "--listen", "127.0.0.1:0"], capture_output=True, text=True
    )
    assert second.returncode == 78
    assert "expected to be the only instar-serve" in second.stderr
    assert first.admin.observed()["problem"] == "no deployment yet"


def test_a_taken_port_is_named(process, forge, tmp_path):
    port = process().base.rpartition(":")[2]
    command = [sys.executable, "-m", "daemon.serving.main", "--state", str(tmp_path / "other")]
    second = subprocess.run(
        [*command, "--model", "m", "--listen", f"127.0.0.1:{port}", "--metrics", "127.0.0.1:0"],
        capture_output=True,
        text=True,
    )
    assert second.returncode == 78
    assert f"expected to listen on 127.0.0.1:{port}" in second.stderr


def test_metrics_pass_promtools_lint(forge, process, kit):
    server = process()
    server.admin.apply(kit.deployment(1, stable=(1, forge.tiny())))
    infer(server, kit.digits(1))
    text = httpx.get(server.metrics_base + "/metrics").text
    assert 'instar_serve_requests_total{model="meter-reader",outcome="ok"} 1.0' in text
    assert 'instar_serve_requests_total{model="meter-reader",outcome="shed"} 0.0' in text
    assert 'instar_serve_request_duration_seconds_bucket{le="0.025",model="meter-reader"} 1.0' in text
    assert httpx.get(server.metrics_base + "/").status_code == 404
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout + lint.stderr
    assert lint.stdout + lint.stderr == ""
    bad = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text.replace("_seconds", "_ms"),
        capture_output=True,
        text=True,
    )
    assert bad.returncode != 0


def test_sockets_are_inherited_and_the_manager_is_told(forge, tmp_path):
    """What systemd does: two sockets as descriptors 3 and 4, a notify socket, and a watchdog."""
    rest, metrics = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "n"))
    told.settimeout(30)
    fds = f"3<&{rest.fileno()} 4<&{metrics.fileno()}"
    # The shell's own pid is the server's after exec, which LISTEN_PID must name.
    script = f"export LISTEN_PID=$$; exec {sys.executable} -m daemon.serving.main {fds}"
    environ = {
        **os.environ,
        "LISTEN_FDS": "2",
        "NOTIFY_SOCKET": str(tmp_path / "n"),
        "WATCHDOG_USEC": "100000",
        "INSTAR_STATE": str(forge.state),
        "INSTAR_MODEL": "meter-reader",
    }
    server = subprocess.Popen(
        ["bash", "-c", script],
        env=environ,
        pass_fds=[rest.fileno(), metrics.fileno()],
        stderr=subprocess.DEVNULL,
    )
    words = set()
    try:
        while not {"READY=1", "WATCHDOG=1"} <= words:
            words |= set(told.recv(4096).decode().splitlines())
        bases = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in (rest, metrics)]
        assert httpx.get(bases[0] + "/v2/health/live").status_code == 200
        assert httpx.get(bases[1] + "/metrics").status_code == 200
    finally:
        server.terminate()
        assert server.wait(30) == 0
    while "STOPPING=1" not in words:
        words |= set(told.recv(4096).decode().splitlines())
    for each in (rest, metrics, told):
        each.close()


def exchange(server, raw: bytes, half_close: bool = False) -> bytes:
    """Send raw bytes, and return all that comes back until the server closes."""
    host, _, port = server.base.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        came = b""
        try:
            sock.sendall(raw)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(65536):
                came += part
        except (ConnectionResetError, BrokenPipeError):
            # A server that closes on an oversized sender may reset; what came before it counts.
            pass
        return came


HEAD = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
WIRE = {
    "announced too large": (HEAD + "content-length: 99999999999\r\n\r\n", {b"413"}),
    "announced absurdly": (HEAD + "content-length: " + "9" * 30 + "\r\n\r\n", {b"400", b"413"}),
    "chunked too large": (
        HEAD + "transfer-encoding: chunked\r\n\r\n" + ("8000\r\n" + "x" * 0x8000 + "\r\n") * 3 + "0\r\n\r\n",
        {b"413"},
    ),
    "length shorter than body": (HEAD + "content-length: 2\r\n\r\n{}GARBAGE\r\n\r\n", {b"400"}),
    "length longer than body": (HEAD + "content-length: 10\r\n\r\n{}", {b""}),
    "length no number": (HEAD + "content-length: x\r\n\r\n{}", {b"400"}),
    "negative length": (HEAD + "content-length: -2\r\n\r\n{}", {b"400"}),
    "bad chunk size": (HEAD + "transfer-encoding: chunked\r\n\r\nZZ\r\n", {b"400"}),
    "no http at all": ("\x16\x03\x01\x02\x00", {b"400", b""}),
}


@pytest.mark.parametrize(("raw", "statuses"), WIRE.values(), ids=WIRE)
def test_nothing_on_the_wire_is_our_error(forge, process, kit, raw, statuses):
    server = process("--max-body-bytes", "65536")
    server.admin.apply(kit.deployment(1, stable=(1, forge.tiny())))
    came = exchange(server, raw.encode("latin-1"), half_close=statuses == {b""})
    assert came[9:12] in statuses, came[:200]
    # The connection's fault is not the next one's.
    body = json.dumps(message(kit.digits(1)))
    good = exchange(server, f"{HEAD}content-length: {len(body)}\r\n\r\n{body}".encode())
    assert good[9:12] == b"200"


def test_flags_come_before_the_environment_and_that_before_defaults():
    environ = {"INSTAR_MODEL": "from-env", "INSTAR_MAX_BATCH": "8", "INSTAR_PIN": "1"}
    read = ServeSettings.from_args(["--state", "/s", "--max-batch", "16"], environ)
    assert (read.model, read.max_batch, read.pin, read.listen) == ("from-env", 16, 1, "127.0.0.1:8080")
    for bad in (
        ["--state", "/s"],
        ["--state", "/s", "--model", "M!"],
        ["--state", "/s", "--model", "m", "--pin=-1"],
    ):
        with pytest.raises(SystemExit):
            ServeSettings.from_args(bad, {})


def test_it_loads_neither_torch_nor_the_control_plane():
    code = "import sys, daemon.serving.main; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "onnx", "apscheduler", "sqlite3", "monitors", "search", "guards"} & set(loaded)
    assert "onnxruntime" in loaded
