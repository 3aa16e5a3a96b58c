"""PromQL of the series that alerts and dashboard share. Names come from where they are exported."""

from collections import Counter

from finetune_api import metrics
from finetune_api.metrics import Metric
from finetune_operator.telemetry import PREFIX, Telemetry

JOB = "namespace, job, pod"
"""Labels of one trainer pod; 'job' is the FineTuneJob."""

# NVIDIA's DCGM exporter, default counters.
GPU_UTILISATION = "DCGM_FI_DEV_GPU_UTIL"
GPU_MEMORY_USED = "DCGM_FI_DEV_FB_USED"
GPU_MEMORY_FREE = "DCGM_FI_DEV_FB_FREE"


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


def gpu(expression: str, aggregation: str) -> str:
    """The exporter's series of each pod. Where labels weren't honoured the pod is in exported_pod, the exporter in pod."""
    for label in ("namespace", "pod"):
        expression = f'label_replace({expression}, "{label}", "$1", "exported_{label}", "(.+)")'
    return f"{aggregation} by (namespace, pod) ({expression})"


def gpu_of_jobs(expression: str, aggregation: str, jobs: str) -> str:
    """The exporter's series with the label job.

    :param jobs: an expression that is 1 for each pod wanted, with the labels JOB.
    """
    return f"{gpu(expression, aggregation)} * on (namespace, pod) group_right () {jobs}"


def gpu_memory_share() -> str:
    """Used share of each GPU's memory."""
    return f"{GPU_MEMORY_USED} / ({GPU_MEMORY_USED} + {GPU_MEMORY_FREE})"
