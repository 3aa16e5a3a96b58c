"""Gates: what the trained model's figures have to hold for the run to be a success."""

import math
import operator
from collections.abc import Callable

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import GatePlan, TrainingPlan
from finetune_api.progress import GateOutcome, Result
from finetune_trainer.errors import InvalidInputError, TrainerError
from finetune_trainer.evaluate.harness import list_harness_figures
from finetune_trainer.evaluate.metrics import list_figures

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class GateFailedError(TrainerError):
    """The model is trained and exported, and a gate doesn't hold."""

    code = ExitCode.GATE_FAILED


def require_known_metrics(plan: TrainingPlan, has_validation: bool) -> None:
    """Raises: InvalidInputError for a gate on a figure that the evaluation won't give, or a harness task that isn't there."""
    harness = plan.evaluation.harness
    known = (["loss"] if has_validation else []) + list_figures(plan)
    if harness is not None:
        known += list_harness_figures(harness)
    for gate in plan.evaluation.gates:
        # A filter's name may stand behind the metric's, and a group has the metrics of its tasks.
        metric = gate.metric.partition(",")[0]
        if metric not in known and not _is_of_group(metric, plan):
            raise InvalidInputError(
                f"evaluation.gates metric {gate.metric} is none of this run's: {', '.join(known) or 'there is none'}; add "
                "it to evaluation.metrics or evaluation.harness, or set dataset.validation for loss"
            )


def compares_with_base(plan: TrainingPlan) -> bool:
    """Whether some gate's bound is a figure of the harness on the base model."""
    return any(gate.versus_base is not None and gate.metric.startswith("harness/") for gate in plan.evaluation.gates)


def decide_gates(
    gates: tuple[GatePlan, ...], before: dict[str, float], after: dict[str, float]
) -> tuple[GateOutcome, ...]:
    """Which gates hold. A figure that is missing or no number lets none hold."""
    return tuple(_decide(gate, before, after) for gate in gates)


def require_gates(result: Result) -> None:
    """Raises: GateFailedError naming each gate that doesn't hold, with figure and bound."""
    failed = [outcome for outcome in result.gates if not outcome.held]
    if failed:
        told = "; ".join(
            f"{outcome.metric} is {_show(outcome.value)}, has to be {outcome.op} {_show(outcome.bound)}"
            for outcome in failed
        )
        raise GateFailedError(f"the trained model misses evaluation.gates: {told}; its artifacts are kept")


def _decide(gate: GatePlan, before: dict[str, float], after: dict[str, float]) -> GateOutcome:
    bound = gate.value if gate.versus_base is None else _add(before.get(gate.metric), gate.versus_base)
    value = after.get(gate.metric)
    held = value is not None and bound is not None and _HOLDS[gate.op](value, bound)
    return GateOutcome(metric=gate.metric, op=gate.op, bound=bound, value=value, held=held)


def _add(base: float | None, difference: float) -> float | None:
    return None if base is None else base + difference


def _is_of_group(metric: str, plan: TrainingPlan) -> bool:
    harness = plan.evaluation.harness
    return harness is not None and any(metric.startswith(f"harness/{task}/") for task in harness.tasks)


def _show(value: float | None) -> str:
    return "no number" if value is None or math.isnan(value) else f"{value:.6g}"
