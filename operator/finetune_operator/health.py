"""HTTP for the kubelet and Prometheus: /healthz (restart me), /readyz (the watches are there), /metrics."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Check = Callable[[], list[str]]
"""Reasons why not; empty when all is well."""

# Beyond these the process does not recover by itself.
KEY_WAITS_SECONDS = 120.0
PASS_RUNS_SECONDS = 300.0
LEASE_RESTS_SECONDS = 30.0


def find_faults(
    watch_owes: float, watch_may_owe: float, key_waits: float, pass_runs: float, lease_rests: float
) -> list[str]:
    """Why the process should be restarted. All in seconds: how long the watch has not delivered what was listed, a due
    key has waited, a pass has run, and the thread of the Lease has done nothing.
    """
    checks = [
        (watch_owes > watch_may_owe, f"watch: a listed change is missing for {watch_owes:.0f} s"),
        (key_waits > KEY_WAITS_SECONDS, f"queue: a key waits for {key_waits:.0f} s"),
        (pass_runs > PASS_RUNS_SECONDS, f"queue: a pass runs for {pass_runs:.0f} s"),
        (lease_rests > LEASE_RESTS_SECONDS, f"lease: no attempt for {lease_rests:.0f} s"),
    ]
    return [reason for failed, reason in checks if failed]


class HealthServer:
    """Serves on all addresses of the pod from a thread.

    :param port: 0 picks a free one; ``port`` then tells which.
    """

    def __init__(self, port: int, healthz: Check, readyz: Check, registry: CollectorRegistry) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                match self.path:
                    case "/healthz":
                        self._report(healthz())
                    case "/readyz":
                        self._report(readyz())
                    case "/metrics":
                        self._send(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                    case _:
                        self._send(404, "text/plain", b"not found\n")

            def log_message(self, format: str, *args: object) -> None:
                """Probes every few seconds are not worth a line each."""

            def _report(self, reasons: list[str]) -> None:
                body = json.dumps({"ok": not reasons, "reasons": reasons}).encode()
                self._send(503 if reasons else 200, "application/json", body)

            def _send(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def start(self) -> None:
        Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
