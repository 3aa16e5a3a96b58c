"""/metrics, /progress and /healthz of rank 0. Answers from snapshots, so a slow reader never slows training."""

import errno
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_api import metrics, names
from finetune_trainer.report.devices import Devices
from finetune_trainer.report.state import RunState, gpu_memory_bytes, host_memory_bytes, peak_host_memory_bytes


class RunCollector(Collector):
    """The run's series, read from the state at each scrape; what isn't known yet is left out."""

    def __init__(self, state: RunState, devices: Devices) -> None:
        self._state = state
        pod = os.environ.get(names.ENV_POD_NAME) or socket.gethostname()
        self._labels = (state.job.namespace, state.job.name, pod)
        self._devices = devices

    def collect(self) -> Iterator[Metric]:
        of_rank_0 = {metric: {0: value} for metric, value in self._values().items() if value is not None}
        for metric, by_rank in (of_rank_0 | self._devices.read()).items():
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            series = family(metric.name, metric.description, labels=metrics.LABELS)
            for rank, value in by_rank.items():
                series.add_metric((*self._labels, str(rank)), value)
            yield series

    def _values(self) -> dict[metrics.Metric, float | None]:
        progress, throughput = self._state.progress, self._state.throughput
        gpu_memory, gpu_memory_peak = gpu_memory_bytes()
        return {
            metrics.LOSS: progress.loss,
            metrics.EVAL_LOSS: progress.eval_loss,
            metrics.LEARNING_RATE: progress.learning_rate,
            metrics.GRAD_NORM: progress.grad_norm,
            metrics.TOKENS_SEEN: throughput.tokens_seen,
            metrics.TOKENS_PER_SECOND: progress.tokens_per_second,
            metrics.STEP_SECONDS: throughput.step_seconds,
            metrics.STEP: progress.step,
            metrics.TOTAL_STEPS: progress.total_steps,
            metrics.EPOCH: progress.epoch,
            metrics.PROGRESS: progress.step / progress.total_steps if progress.total_steps else 0.0,
            metrics.HOST_MEMORY: host_memory_bytes(),
            metrics.HOST_MEMORY_PEAK: peak_host_memory_bytes(),
            metrics.GPU_MEMORY: gpu_memory,
            metrics.GPU_MEMORY_PEAK: gpu_memory_peak,
            metrics.CHECKPOINT_STEP: progress.checkpoint_step,
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    state: RunState
    registry: CollectorRegistry


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/progress":
            self._answer(200, "application/json", self.server.state.progress.model_dump_json(by_alias=True).encode())
        elif path == "/metrics":
            self._answer(200, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        elif path == "/healthz":
            self._answer(200, "text/plain", b"ok\n")
        else:
            self._answer(404, "text/plain", b"/metrics, /progress and /healthz are here\n")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests aren't logged: there is one every few seconds."""


def serve_state(state: RunState, devices: Devices, port: int) -> ThreadingHTTPServer:
    """Serve ``state`` and what its GPUs tell from a thread; ``server_port`` is another than ``port`` when that is 0 or taken.

    In a pod it listens on the pod's address, elsewhere on loopback only.
    """
    host = os.environ.get(names.ENV_POD_IP) or "127.0.0.1"
    _Server.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Another run of this machine has it: being watched isn't worth a run that doesn't start.
        server = _Server((host, 0), _Handler)
    server.state = state
    server.registry = CollectorRegistry()
    server.registry.register(RunCollector(state, devices))
    # Its shutdown lasts as long as the time between two looks for one.
    threading.Thread(target=server.serve_forever, args=(0.05,), name="metrics", daemon=True).start()
    return server
