"""PromQL of the series that alerts and dashboard share. Names come from where they are exported."""

from collections import Counter

from finetune_api import metrics
from finetune_api.metrics import Metric
from finetune_operator.telemetry import PREFIX, Telemetry

JOB = "namespace, job, pod"
"""Labels of one trainer pod; 'job' is the FineTuneJob."""

# NVIDIA's DCGM exporter, default counters.
DCGM_UTILISATION = "DCGM_FI_DEV_GPU_UTIL"
DCGM_POWER = "DCGM_FI_DEV_POWER_USAGE"
DCGM_MEMORY_USED = "DCGM_FI_DEV_FB_USED"
DCGM_MEMORY_FREE = "DCGM_FI_DEV_FB_FREE"
_MEBIBYTE = 2**20
"""The exporter counts memory in MiB."""


def _exported() -> frozenset[str]:
    telemetry = Telemetry()
    telemetry.observe_jobs(Counter)
    return frozenset(family.name for family in telemetry.registry.collect())


_EXPORTED = _exported()


def operator_metric(name: str, suffix: str = "") -> str:
    """Full name of one of the operator's metrics. Raises KeyError when it exports none such.

    :param suffix: what the text format adds: _total, _bucket or _count.
    """
    if (full := f"{PREFIX}_{name}") not in _EXPORTED:
        raise KeyError(f"{full} is not among {sorted(_EXPORTED)}")
    return full + suffix


def select(metric: Metric, matchers: str = "") -> str:
    """A selector of a trainer's series."""
    return f"{metric.name}{{{matchers}}}" if matchers else metric.name


def training(matchers: str = "") -> str:
    """1 for each trainer pod that is between its first and its last step."""
    began, ends = select(metrics.STEP, matchers), select(metrics.PROGRESS, matchers)
    return f"group by ({JOB}) ({began} > 0 and {ends} < 1)"


def gpu_utilisation(jobs: str) -> str:
    """Mean utilisation of each pod's GPUs, 0 to 1."""
    return _of_devices("avg", f"{DCGM_UTILISATION} / 100", select(metrics.GPU_UTILIZATION), jobs)


def gpu_power(jobs: str) -> str:
    """Power that each pod's GPUs draw together, W."""
    return _of_devices("sum", DCGM_POWER, select(metrics.GPU_POWER), jobs)


def gpu_memory_used(jobs: str) -> str:
    """Memory in use on the fullest GPU of each pod, bytes."""
    return _of_devices("max", f"{DCGM_MEMORY_USED} * {_MEBIBYTE}", select(metrics.GPU_DEVICE_MEMORY_USED), jobs)


def gpu_memory_share(jobs: str) -> str:
    """Used share of the memory of the fullest GPU of each pod."""
    used, total = select(metrics.GPU_DEVICE_MEMORY_USED), select(metrics.GPU_DEVICE_MEMORY_TOTAL)
    return _of_devices(
        "max", f"{DCGM_MEMORY_USED} / ({DCGM_MEMORY_USED} + {DCGM_MEMORY_FREE})", f"{used} / {total}", jobs
    )


def _of_devices(aggregation: str, dcgm: str, own: str, jobs: str) -> str:
    """A value of the GPUs of each pod: by the DCGM exporter, else by the trainer itself.

    The exporter's series have the pod's name in exported_pod where labels weren't honoured (pod is the exporter's).

    :param jobs: an expression that is 1 for each pod wanted, with the labels JOB.
    """
    for label in ("namespace", "pod"):
        dcgm = f'label_replace({dcgm}, "{label}", "$1", "exported_{label}", "(.+)")'
    by_exporter = f"{aggregation} by (namespace, pod) ({dcgm}) * on (namespace, pod) group_right () {jobs}"
    by_trainer = f"{aggregation} by ({JOB}) ({own}) * on ({JOB}) {jobs}"
    return f"(({by_exporter}) or ({by_trainer}))"
