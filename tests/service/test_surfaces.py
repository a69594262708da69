"""HTTP, health, command line and settings of a server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from farsum_kernels.errors import UnsafeBind
from farsum_proto import wire
from farsum_server.cli import main
from farsum_server.settings import Settings, check_bind, settings_from
from tests.service.server import Server, engine_on, gaussian_sum, points, raw_channel, running

METRICS = {
    "build_info", "rpc_requests_total", "rpc_duration_seconds_bucket", "queue_wait_seconds_bucket", "queue_depth",
    "inflight_requests", "ingest_bytes_total", "egress_bytes_total", "store_used_bytes", "store_capacity_bytes",
    "worker_restarts_total", "event_loop_lag_seconds", "draining",
}  # fmt: skip


def farsum(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "farsum_server.cli", *arguments],
        capture_output=True, text=True, timeout=60, env=os.environ | environment,
    )  # fmt: skip


def test_http(server: Server) -> None:
    with engine_on(server) as engine:
        engine.prepare(gaussian_sum()).run(points(500, 500))
        engine.prepare(gaussian_sum()).run(points(30_000, 5))
    assert server.status("/healthz") == server.status("/readyz") == 200
    assert server.status("/v1/jobs") == 404
    with urllib.request.urlopen(f"{server.http}/metrics") as page:
        text = page.read().decode()
    assert {name for name in METRICS if f"\nfarsum_{name}" not in text} == set()
    assert 'farsum_rpc_requests_total{code="OK",method="Reduce"}' in text
    with urllib.request.urlopen(f"{server.http}/v1/info") as page:
        info = json.load(page)
    assert (
        info["ready"]
        and info["devices"][0]["kind"] == "cpu"
        and info["newest_protocol"] == wire.NEWEST_PROTOCOL
    )


def test_names_that_only_resolve_to_us_are_refused(server: Server) -> None:
    asked = urllib.request.Request(f"{server.http}/v1/info", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(asked)
    with raised.value as error:
        assert error.code == 400


def test_grpc_health(server: Server) -> None:
    with raw_channel(server) as channel:
        for service in ("", wire.SERVICE):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection() -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with running("--reflection") as server, raw_channel(server) as channel:
        assert wire.SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_generated_stubs_speak_to_the_server(server: Server) -> None:
    from farsum_proto.v1 import farsum_pb2, farsum_pb2_grpc

    with raw_channel(server) as channel:
        answer = farsum_pb2_grpc.ReductionsStub(channel).Info(farsum_pb2.InfoRequest())
    assert answer.ready and answer.devices[0].kind == "cpu"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "unix:"])
def test_addresses_that_others_can_reach_are_refused(host: str) -> None:
    with pytest.raises(UnsafeBind, match="ssh -N -L"):
        check_bind(host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost", "unix:/run/farsum.sock"]
)
def test_addresses_of_this_machine(host: str) -> None:
    assert check_bind(host) == host


def test_serve_refuses_an_open_address() -> None:
    done = farsum("serve", "--host", "0.0.0.0")
    assert done.returncode == 1 and "refusing to listen on '0.0.0.0'" in done.stderr


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_port_that_is_taken(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = {"--port": "0", "--http-port": "0"} | {flag: str(taken.getsockname()[1])}
        done = farsum("serve", *(word for pair in flags.items() for word in pair))
    assert done.returncode == 1 and flag in done.stderr and "Traceback" not in done.stderr


def test_help() -> None:
    assert "serve" in farsum("--help").stdout
    done = farsum("serve", "--help")
    assert done.returncode == 0
    for word in ("--host", "--port", "--http-port", "--store-bytes", "--config", "FARSUM_PORT"):
        assert word in done.stdout
    assert "%%" not in done.stdout and "factory" not in done.stdout


def test_mistaken_flags() -> None:
    for flags, says in ((("--port", "many"), "port"), (("--no-such-flag",), "no-such-flag")):
        done = farsum("serve", *flags)
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    done = farsum("serve", "--config", "/no/such/file")
    assert done.returncode == 2 and "/no/such/file" in done.stderr


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "farsum.toml"
    file.write_text("port = 1001\nhttp_port = 1002\nqueue_limit = 3\n")
    monkeypatch.setenv("FARSUM_HTTP_PORT", "2002")
    settings = settings_from(file)(queue_limit=5)
    assert (settings.port, settings.http_port, settings.queue_limit) == (1001, 2002, 5)
    file.write_text("prot = 1\n")
    done = farsum("serve", "--config", str(file))
    assert done.returncode == 2 and "prot" in done.stderr


def test_warming_never_takes_more_than_the_store() -> None:
    assert Settings(store_bytes=1 << 21).limits.store_warm_bytes <= 1 << 21


def test_ping(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", server.target]) == 0
    assert "threads" in capsys.readouterr().out
    assert main(["ping", "grpc://127.0.0.1:9"]) == 1
    assert "farsum serve" in capsys.readouterr().err


def test_missing_extras_are_named() -> None:
    script = (
        "import sys\nsys.modules['pydantic_settings'] = None\n"
        "from farsum_server.cli import main\nsys.exit(main(['serve']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and 'pip install "farsum[server]"' in done.stderr


def test_daemon_imports_no_native_code() -> None:
    script = (
        "import sys, farsum_server.app\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('llvmlite', 'cupy') or 'farsum_kernels.backends' in m]\n"
        "sys.exit(', '.join(bad) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_logs_are_json_where_nobody_watches(server: Server) -> None:
    assert not server.other_output
    assert all({"event", "level", "timestamp"} <= entry.keys() for entry in server.log)


def test_message_limits_and_ports_are_set(server: Server) -> None:
    with raw_channel(server) as channel:
        call = channel.unary_unary(wire.METHODS["Info"])
        with pytest.raises(grpc.RpcError) as raised:
            call(bytes(wire.MAX_MESSAGE_BYTES + 1), timeout=20)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
