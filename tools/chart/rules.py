"""Alert rules, in Prometheus's format."""

from typing import Any

from finetune_api import metrics
from finetune_api.names import Phase
from tools.chart.series import (
    gpu_memory_share,
    gpu_utilisation,
    operator_metric,
    select,
    training,
)

_POD = "{{ $labels.namespace }}/{{ $labels.job }} (pod {{ $labels.pod }})"
_LOOK = "kubectl --namespace {{ $labels.namespace }} describe finetunejob {{ $labels.job }}"
_OPERATOR_LOG = (
    "kubectl --namespace {{ $labels.namespace }} logs --selector app.kubernetes.io/component=operator --prefix"
)

NAMES = "namespace, job, pod, rank"


def _alert(
    name: str, expression: str, seconds: str, severity: str, summary: str, description: str, runbook: str
) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": seconds,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": description, "runbook": runbook},
    }


def _not_a_number(metric: metrics.Metric) -> str:
    series = select(metric)
    return f"{series} != {series} or abs({series}) == Inf"


def _build_training() -> list[dict[str, Any]]:
    step, loss, eval_loss = select(metrics.STEP), select(metrics.LOSS), select(metrics.EVAL_LOSS)
    rate, throughput = select(metrics.LEARNING_RATE), select(metrics.TOKENS_PER_SECOND)
    unfinished = f"on ({NAMES}) {select(metrics.PROGRESS)} < 1"
    return [
        _alert(
            "FineTuneLossNotANumber",
            f"{_not_a_number(metrics.LOSS)} or {_not_a_number(metrics.EVAL_LOSS)}",
            "0m",
            "critical",
            f"The loss of {_POD} is not a number",
            "Training or evaluation loss is NaN or infinite. The trainer ends by itself when the training loss is (exit code 10).",
            f"Lower training.learningRate, raise training.warmupRatio, or train with precision bf16 or fp32 instead of fp16; look for empty or broken records in the dataset. `{_LOOK}` tells the step.",
        ),
        _alert(
            "FineTuneLossAbsent",
            f"{step} > 0 unless on ({NAMES}) {loss}",
            "30m",
            "warning",
            f"{_POD} trains but tells no loss",
            "Steps are done for 30 minutes and no loss was logged.",
            "training.loggingSteps is larger than what 30 minutes of steps reach: lower it. Else read the trainer's log.",
        ),
        _alert(
            "FineTuneLossStagnant",
            f"avg_over_time({loss}[30m]) >= 0.995 * avg_over_time({loss}[30m] offset 2h) "
            f"and on ({NAMES}) {step} - {step} offset 2h > 1000 and {unfinished}",
            "30m",
            "info",
            f"The loss of {_POD} doesn't fall any more",
            "In more than 1,000 steps the mean loss fell by less than 0.5 %.",
            "The model may have learnt what there is: stop here and save GPU hours, or raise training.learningRate. Compare with the evaluation loss on the dashboard.",
        ),
        _alert(
            "FineTuneEvalLossRising",
            f"{eval_loss} > 1.05 * min_over_time({eval_loss}[1d]) and {unfinished}",
            "15m",
            "warning",
            f"{_POD} overfits",
            "The evaluation loss is more than 5 % above its lowest value.",
            "Stop and use the checkpoint of the lowest evaluation loss; train fewer epochs, with more data, a lower rank or more dropout.",
        ),
        _alert(
            "FineTuneLearningRateZero",
            f"{rate} == 0 and on ({NAMES}) {step} > 0 and on ({NAMES}) {select(metrics.PROGRESS)} < 0.99",
            "15m",
            "warning",
            f"{_POD} trains with learning rate 0",
            "The learning rate is 0 before the end of the schedule: the steps change nothing.",
            "With precision fp16 every step may be skipped for infinite gradients, which holds the scheduler at its start: use bf16. Else check training.scheduler and training.warmupRatio.",
        ),
        _alert(
            "FineTuneGradientNormHigh",
            f"{select(metrics.GRAD_NORM)} > 10 and {unfinished}",
            "10m",
            "warning",
            f"The gradient norm of {_POD} is {{{{ $value | humanize }}}}",
            "The gradient norm before clipping is above 10 for 10 minutes: training is about to diverge.",
            "Lower training.learningRate or raise training.warmupRatio; check that training.maxGradNorm is set.",
        ),
        _alert(
            "FineTuneNoProgress",
            f"changes({step}[10m]) == 0 and on ({NAMES}) {step} > 0 and {unfinished}",
            "30m",
            "critical",
            f"{_POD} has made no step for 40 minutes",
            "No optimiser step for 40 minutes in a run that isn't finished. A long evaluation counts as well.",
            "`kubectl --namespace {{ $labels.namespace }} logs {{ $labels.pod }}` tells the stage. Hung ranks and slow storage are the usual causes; deleting the pod resumes from the newest checkpoint.",
        ),
        _alert(
            "FineTuneNeverStarted",
            f"{step} == 0",
            "2h",
            "warning",
            f"{_POD} prepares for 2 hours",
            "The trainer runs for 2 hours without a first step: download, tokenisation or loading of the model take too long.",
            "Give the job a model cache (model.cache), or put the model on a claim; see the trainer's log for the stage.",
        ),
        _alert(
            "FineTuneThroughputDrop",
            f"{throughput} < 0.8 * quantile_over_time(0.5, {throughput}[2h] offset 15m) and {unfinished}",
            "15m",
            "warning",
            f"{_POD} has lost more than 20 % of its throughput",
            "Tokens per second are more than 20 % below the median of the two hours before.",
            "Compare GPU utilisation and step time on the dashboard: a throttled GPU, a noisy neighbour on the node, or slow reading of data.",
        ),
        _alert(
            "FineTuneGpuIdle",
            f"{gpu_utilisation(training())} < 0.5",
            "15m",
            "warning",
            f"The GPUs of {_POD} are used at {{{{ $value | humanizePercentage }}}}",
            "Mean GPU utilisation is below 50 % while training.",
            "Raise training.perDeviceBatchSize, or give the pod more CPU for reading data; gradientCheckpointing off if memory allows.",
        ),
        _alert(
            "FineTuneGpuMemoryFull",
            f"{gpu_memory_share(training())} > 0.95",
            "5m",
            "warning",
            f"A GPU of {_POD} is {{{{ $value | humanizePercentage }}}} full",
            "More than 95 % of a GPU's memory is used: the next long batch may end the run (exit code 11).",
            "Lower training.perDeviceBatchSize and raise gradientAccumulation, turn gradientCheckpointing on, or use method qlora.",
        ),
    ]  # fmt: skip


def _build_operator() -> list[dict[str, Any]]:
    leader, errors = operator_metric("leader"), operator_metric("reconcile_errors", "_total")
    passes = operator_metric("reconcile_duration_seconds", "_count")
    buckets = operator_metric("reconcile_duration_seconds", "_bucket")
    failed = f'{operator_metric("jobs_finished", "_total")}{{phase="{Phase.FAILED}"}}'
    return [
        _alert(
            "FineTuneJobFailed",
            f"round(sum by (namespace) (increase({failed}[10m]))) > 0",
            "0m",
            "warning",
            "{{ $value }} FineTuneJob(s) failed",
            "FineTuneJobs have failed in the last 10 minutes.",
            "`kubectl get finetunejobs --all-namespaces` shows which; `kubectl describe finetunejob` tells the reason and what to change.",
        ),
        _alert(
            "FineTuneOperatorDown",
            f"absent({leader})",
            "5m",
            "critical",
            "No replica of the FineTune operator answers",
            "Prometheus gets no metrics of the operator. Running jobs go on; new ones are not started.",
            "`kubectl get pods --all-namespaces --selector app.kubernetes.io/component=operator,app.kubernetes.io/part-of=finetune-operator`: see why they don't run, or why the ServiceMonitor doesn't find them.",
        ),
        _alert(
            "FineTuneOperatorNoLeader",
            f"sum by (namespace) ({leader}) == 0",
            "5m",
            "critical",
            "The FineTune operator in {{ $labels.namespace }} has no leader",
            "Replicas run, but none holds the Lease: nothing is reconciled.",
            f"`kubectl --namespace {{{{ $labels.namespace }}}} get lease` shows who held it last; `{_OPERATOR_LOG}` why it isn't taken (rights on leases, clock, API server).",
        ),
        _alert(
            "FineTuneOperatorErrors",
            f"sum by (namespace) (rate({errors}[10m])) / sum by (namespace) (rate({passes}[10m])) > 0.1",
            "15m",
            "warning",
            "{{ $value | humanizePercentage }} of the passes of the FineTune operator in {{ $labels.namespace }} fail",
            "More than 10 % of the reconcile passes raise an error.",
            f"`{_OPERATOR_LOG}` names the job and the error; missing rights and an overloaded API server are the usual causes.",
        ),
        _alert(
            "FineTuneOperatorSlow",
            f"histogram_quantile(0.99, sum by (namespace, le) (rate({buckets}[10m]))) > 5",
            "15m",
            "warning",
            "The slowest passes of the FineTune operator in {{ $labels.namespace }} take {{ $value | humanizeDuration }}",
            "The 99th percentile of a reconcile pass is above 5 seconds.",
            "The API server is slow or throttles the operator, or trainers don't answer: see the operator's part of the dashboard.",
        ),
        _alert(
            "FineTuneOperatorQueueStuck",
            # A replica that doesn't lead keeps what is due for the day it does.
            f"min_over_time({operator_metric('queue_depth')}[10m]) > 0 and {leader} == 1",
            "10m",
            "warning",
            "The FineTune operator in {{ $labels.namespace }} doesn't keep up",
            "Keys have been waiting for a worker for 20 minutes without a break.",
            "Raise settings.workers, or find out why passes are slow.",
        ),
    ]  # fmt: skip


def build_groups() -> list[dict[str, Any]]:
    """The rule groups."""
    return [
        {"name": "finetune-training", "rules": _build_training()},
        {"name": "finetune-operator", "rules": _build_operator()},
    ]
