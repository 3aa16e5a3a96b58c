"""``python -m finetune_trainer --plan FILE``: runs a TrainingPlan and exits with a code of ``exit_codes.TABLE``."""

import argparse
import atexit
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from finetune_api.exit_codes import ExitCode
from finetune_api.methods import METHODS
from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import TrainingPlan
from finetune_api.progress import ArtifactRecord, Result
from finetune_trainer.environment import loading_libraries, prepare_environment, quiet_libraries
from finetune_trainer.errors import InvalidInputError, TrainerError, classify_error, describe_validation_error
from finetune_trainer.evaluate.gates import require_gates
from finetune_trainer.export.delivery import deliver_logs, fetch_artifacts, find_result
from finetune_trainer.export.hub import push_artifacts, require_token
from finetune_trainer.launcher import is_rank, launch, needs_launch
from finetune_trainer.preflight import check_machine, check_network
from finetune_trainer.report.devices import Devices
from finetune_trainer.report.server import serve_state
from finetune_trainer.report.state import RunState
from finetune_trainer.report.terminal import Terminal, open_terminal
from finetune_trainer.report.termination import build_termination, write_termination
from finetune_trainer.stop import StopRequest


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the run that ``--plan`` names."""
    parser = argparse.ArgumentParser(prog="finetune_trainer", description="Run a TrainingPlan.")
    parser.add_argument("--plan", type=Path, required=True, help="JSON file of the TrainingPlan")
    plan_file = parser.parse_args(arguments).plan
    try:
        plan = load_plan(plan_file)
        if not is_rank():
            check_machine(plan)
    except TrainerError as error:
        terminal = open_terminal(is_main=True)
        terminal.event("failed", str(error), code=int(error.code))
        terminal.close()
        write_termination(build_termination(error.code, str(error)))
        return error.code
    if needs_launch(plan.parallelism):
        return launch(plan_file, plan.parallelism)
    prepare_environment(plan)
    return run_plan(plan)


def load_plan(path: Path) -> TrainingPlan:
    """The plan in a JSON file. Raises: InvalidInputError naming the first fields that are wrong."""
    try:
        plan = TrainingPlan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"plan {path}: {error.strerror}") from error
    except ValidationError as error:
        raise InvalidInputError(f"plan {path}: {describe_validation_error(error.errors())}") from error
    _require_sense(plan)
    return plan


def _require_sense(plan: TrainingPlan) -> None:
    """What only fields together show, before anything is loaded. Raises: InvalidInputError."""
    method, training = plan.method, plan.training
    part = METHODS[method.type].part
    if part != "none" and getattr(method, part) is None:
        raise InvalidInputError(f"method.{to_camel(part)} is missing, method.type {method.type} needs it")
    if method.type == "qlora" and method.quantization is None:
        raise InvalidInputError("method.quantization is missing, method.type qlora needs it")
    if not METHODS[method.type].adapter and "adapter" in plan.output.artifacts:
        raise InvalidInputError(f"output.artifacts has adapter, method.type {method.type} makes none: use merged")
    if (training.epochs is None) == (training.max_steps is None):
        raise InvalidInputError("exactly one of training.epochs and training.maxSteps has to be set")
    if plan.parallelism.device == "cpu" and training.precision in ("fp16", "tf32"):
        raise InvalidInputError(f"training.precision {training.precision} needs a GPU: use fp32 or bf16")
    if "gguf" in plan.output.artifacts and not METHODS[method.type].mergeable:
        raise InvalidInputError(
            f"output.artifacts has gguf, which holds whole models, and what method.type {method.type} trains can't be "
            "merged: use adapter, or method.type lora"
        )
    _require_sensible_evaluation(plan)
    require_token(plan)


def _require_sensible_evaluation(plan: TrainingPlan) -> None:
    """Raises: InvalidInputError for figures that the objective or the missing validation data can't give."""
    objective, evaluation = OBJECTIVES[plan.objective.type], plan.evaluation
    if objective.classifies and (evaluation.metrics or evaluation.harness or "gguf" in plan.output.artifacts):
        raise InvalidInputError(
            f"evaluation.metrics, evaluation.harness and output.artifacts gguf need a model that writes, and "
            f"objective.type {plan.objective.type} trains a score: leave them out, and set gates on loss"
        )
    if "perplexity" in evaluation.metrics and objective.rows != "language":
        raise InvalidInputError(
            f"evaluation.metrics perplexity needs a loss that is a cross-entropy, and that of objective.type "
            f"{plan.objective.type} is none: leave it out"
        )
    if plan.dataset.validation_source is None and not plan.dataset.validation_fraction:
        wanting = {
            "evaluation.metrics": bool(evaluation.metrics),
            "training.earlyStopping": plan.training.early_stopping is not None,
            "checkpoint.keepBest": plan.checkpoint.keep_best,
        }
        if names := [name for name, wanted in wanting.items() if wanted]:
            raise InvalidInputError(f"{' and '.join(names)} need validation data: set dataset.validation")


def run_plan(plan: TrainingPlan) -> int:
    """Run the plan in this process; the exit code. Says why on stderr and in the termination message."""
    is_main = os.environ.get("RANK", "0") == "0"
    terminal = open_terminal(is_main)
    state = RunState(plan.job)
    artifacts: tuple[ArtifactRecord, ...] = ()
    stop = StopRequest()
    try:
        stop.install()
        result = find_result(plan, is_main)
        if result is not None:
            state.update(stage="done", step=result.steps, total_steps=result.steps, loss=result.loss)
            message = f"the run is finished already: {result.delivered_to or plan.output.directory}/result.json"
        else:
            result = _run(plan, is_main, terminal, state, stop)
            state.set_stage("done")
            terminal.progress(state.progress)
            message = f"{state.progress.step} steps are done"
        code = ExitCode.OK
        artifacts = result.artifacts if result is not None else ()
        if result is not None and is_main:
            _conclude(plan, result, terminal)
        terminal.event("done", message, artifacts=[record.path for record in artifacts])
    except Exception as error:
        code, message = classify_error(stop.interruption or error, plan)
        if code == ExitCode.ERROR:
            traceback.print_exc()
        terminal.event("preempted" if code == ExitCode.PREEMPTED else "failed", message, code=int(code))
    if is_main:
        deliver_logs(plan, lambda text: terminal.event("warning", text))
    terminal.close()
    write_termination(build_termination(code, message, state.progress, artifacts))
    return code


def _conclude(plan: TrainingPlan, result: Result, terminal: Terminal) -> None:
    """What is left once the artifacts are there: the gates, and the upload of a model that passes them.

    Raises: GateFailedError, DeliveryError, UploadError.
    """
    require_gates(result)
    if plan.output.hub is not None and result.pushed_to is None:
        fetch_artifacts(plan, result)
        pushed = push_artifacts(plan, result, lambda text: terminal.event("warning", text))
        terminal.event("pushed", f"the artifacts are uploaded to {pushed.pushed_to}", address=pushed.pushed_to)


def _run(plan: TrainingPlan, is_main: bool, terminal: Terminal, state: RunState, stop: StopRequest) -> Result | None:
    server = None
    if is_main:
        devices = Devices(plan.parallelism.processes_per_node if plan.parallelism.device == "cuda" else 0)
        if devices.problem:
            terminal.event("warning", f"GPU metrics by NVML are incomplete: {devices.problem}")
        server = serve_state(state, devices, plan.observability.metrics_port)
        if plan.observability.metrics_port not in (0, server.server_port):
            terminal.event("warning", f"observability.metricsPort {plan.observability.metrics_port} is taken")
        terminal.event("serving", f"metrics on port {server.server_port}", port=server.server_port)
    quiet_libraries()
    # torch and the Hugging Face libraries take seconds to load: not for a plan that is wrong or a run that is finished.
    with loading_libraries():
        from finetune_trainer.distributed import join_ranks
        from finetune_trainer.run import run_training
    try:
        ranks = join_ranks(plan.parallelism)
        most, plan = plan.parallelism.nodes, _deal_out(plan, ranks.world_size)
        nodes = plan.parallelism.nodes
        state.update(nodes=nodes)
        if plan.parallelism.elastic is not None:
            terminal.event("nodes", f"{nodes} of at most {most} nodes are there", nodes=nodes)
        check_network(plan, ranks, terminal)
        return run_training(plan, ranks, state, terminal, stop)
    finally:
        if server is not None:
            server.shutdown()


def _deal_out(plan: TrainingPlan, world_size: int) -> TrainingPlan:
    """The plan for the nodes that are there. Raises: InvalidInputError."""
    try:
        return plan.on_nodes(world_size // plan.parallelism.processes_per_node)
    except ValueError as error:
        raise InvalidInputError(f"parallelism.elastic: {error}") from error


def leave(exit_code: int) -> NoReturn:
    """End the process without Python's tidying up of all objects: two seconds that would be the GPU's, or the grace period's."""
    if exit_code == ExitCode.OK or not is_rank():
        # A failed rank's would wait for collectives that the other ranks, or this one, will never finish.
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    leave(main())
