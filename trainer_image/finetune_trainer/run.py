"""One training run from plan to result, as a table of contents."""

from itertools import islice
from typing import Any

from transformers import TrainerCallback, TrainerState

from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import TrainingPlan
from finetune_api.progress import ArtifactRecord, Result, Sample
from finetune_trainer.checkpoint.best import load_best
from finetune_trainer.checkpoint.callback import CheckpointCallback, TrainedAlreadyError
from finetune_trainer.checkpoint.keeper import Keeper
from finetune_trainer.checkpoint.marker import Marker
from finetune_trainer.checkpoint.reached import ReachedCallback, count_lost_steps
from finetune_trainer.checkpoint.resume import (
    ResumePoint,
    adopt_checkpoint,
    discard_later,
    fetch_checkpoint,
    find_resume_point,
)
from finetune_trainer.data.prepare import PreparedData, load_data, prepare_data
from finetune_trainer.distributed import Ranks, enable_fsdp
from finetune_trainer.errors import InvalidInputError, PreemptedError
from finetune_trainer.evaluate.course import EarlyStopping, describe_stop
from finetune_trainer.evaluate.gates import compares_with_base, decide_gates, require_known_metrics
from finetune_trainer.evaluate.loss import loss_after, loss_at, loss_before, training_loss
from finetune_trainer.evaluate.measure import add_loss, describe_figures, measure_after, measure_before
from finetune_trainer.evaluate.metrics import Question, read_questions
from finetune_trainer.evaluate.samples import answer_before, answer_prompts
from finetune_trainer.export.artifacts import export_artifacts
from finetune_trainer.export.delivery import deliver_artifacts
from finetune_trainer.export.gguf import require_exportable
from finetune_trainer.memory.search import fit_batch
from finetune_trainer.model.adapter import prepare_method
from finetune_trainer.model.load import load_model, load_tokenizer, require_fitting_vocabulary
from finetune_trainer.model.source import locate_model
from finetune_trainer.model.whole import drop_fetched, gather_model, shards_parameters, sketch_model, whole_base
from finetune_trainer.objective.build import build_config, build_trainer
from finetune_trainer.objective.parts import Parts
from finetune_trainer.report.callback import ReportCallback
from finetune_trainer.report.result import read_versions, write_result
from finetune_trainer.report.state import RunState, gpu_memory_bytes, peak_host_memory_bytes
from finetune_trainer.report.terminal import Terminal
from finetune_trainer.stop import StopRequest
from finetune_trainer.store import Store

_VERIFIED_ROWS = 4


def run_training(
    plan: TrainingPlan, ranks: Ranks, state: RunState, terminal: Terminal, stop: StopRequest
) -> Result | None:
    """Prepare, train, evaluate, export; the result, on rank 0 only."""
    location, tokenizer, data = _prepare(plan, ranks, terminal)
    plan = _without_samples(_with_length(plan, data.max_length))
    resume = _find_resume_point(plan, ranks, data, terminal)
    # Before the model: it sets up the engines that decide how the weights are loaded.
    config = build_config(plan, data.validation is not None, resumed=resume is not None)
    enable_fsdp(plan.parallelism)
    model = load_model(plan, location, ranks.local_rank)
    require_fitting_vocabulary(plan, data.largest_id, model)
    require_known_metrics(plan, data.validation is not None)
    require_exportable(plan, model.config, tokenizer)
    questions = read_questions(plan, tokenizer, data.validation)
    before, figures_before = _ask_before(plan, ranks, model, location, tokenizer, questions)

    report = ReportCallback(state, terminal, plan.training.learning_rate, plan.training.precision)
    checkpoints = _build_checkpoints(plan, ranks, state, terminal, stop, data, report, resume)
    trained, peft_config = prepare_method(plan, model)
    stopping = plan.training.early_stopping
    callbacks = [*([EarlyStopping(stopping)] if stopping else []), *checkpoints, report]
    trainer = build_trainer(config, Parts(plan, trained, peft_config, tokenizer, data, callbacks))
    sketch = sketch_model(trainer.model) if ranks.is_main and shards_parameters(plan) else None
    trainable, total = _count_parameters(trainer.model if sketch is None else sketch)
    if plan.training.batch_search:
        fit_batch(trainer, plan, ranks, resume.folder if resume else None, lambda text: terminal.event("batch", text))
    _train(trainer, resume, ranks, stop)

    state.set_stage("evaluating")
    best, eval_loss = _choose_weights(plan, trainer, ranks, terminal)
    loss_before_training, steps = loss_before(trainer), trainer.state.global_step
    model = _release_model(plan, trainer, sketch)
    if not ranks.is_main:
        return None
    state.update(eval_loss=eval_loss, loss=training_loss(trainer), step=steps, total_steps=steps)
    after = answer_prompts(plan, model, tokenizer)
    samples = [
        Sample(prompt=p, before=b, after=a) for p, b, a in zip(plan.evaluation.samples, before, after, strict=True)
    ]
    figures = add_loss(plan, measure_after(plan, model, tokenizer, questions), eval_loss)
    figures_before = add_loss(plan, figures_before, loss_before_training)
    if figures:
        told = describe_figures(figures_before, figures)
        terminal.event("evaluation", told, before=figures_before, after=figures)
    artifacts = _export(plan, state, terminal, model, tokenizer, location, data)
    tokens = trainer.state.num_input_tokens_seen
    result = Result(
        run_id=plan.job.run_id,
        job=plan.job.name,
        steps=steps,
        epochs=trainer.state.epoch,
        loss=training_loss(trainer),
        eval_loss_before=loss_before_training,
        eval_loss=eval_loss,
        tokens_seen=tokens,
        tokens_per_second=tokens / report.train_seconds,
        train_seconds=report.train_seconds,
        peak_host_memory_bytes=peak_host_memory_bytes(),
        peak_gpu_memory_bytes=gpu_memory_bytes()[1],
        trainable_parameters=trainable,
        total_parameters=total,
        resumes=_count_resumes(resume),
        lost_steps=state.progress.lost_steps,
        artifacts=artifacts,
        samples=tuple(samples),
        evaluation_before=figures_before,
        evaluation=figures,
        gates=decide_gates(plan.evaluation.gates, figures_before, figures),
        best_step=best,
        delivered_to=plan.output.destination,
        versions=read_versions(),
    )
    write_result(plan, result)
    return result


def _build_checkpoints(
    plan: TrainingPlan,
    ranks: Ranks,
    state: RunState,
    terminal: Terminal,
    stop: StopRequest,
    data: PreparedData,
    report: ReportCallback,
    resume: ResumePoint | None,
) -> list[TrainerCallback]:
    """What saves, and goes on where ``resume`` was; tells both."""
    report.train_seconds = resume.marker.train_seconds if resume else 0.0
    lost_steps = count_lost_steps(plan, resume) if ranks.is_main else 0
    state.update(lost_steps=lost_steps)
    if resume is not None:
        step = resume.marker.step
        state.update(checkpoint_step=step, restarted_from=step)
        terminal.event("resumed", f"going on from the checkpoint of step {step}", step=step)

    def describe(trainer_state: TrainerState) -> Marker:
        return Marker(
            run_id=plan.job.run_id,
            training_hash=plan.training_hash(),
            data_fingerprint=data.fingerprint,
            world_size=ranks.world_size,
            step=trainer_state.global_step,
            epoch=trainer_state.epoch,
            samples_consumed=_count_samples(plan, data, trainer_state),
            tokens_seen=trainer_state.num_input_tokens_seen,
            train_seconds=report.train_seconds,
            resumes=_count_resumes(resume),
            lost_steps=lost_steps,
        )

    def kept(step: int) -> None:
        state.update(checkpoint_step=step)
        terminal.event("checkpoint", f"checkpoint of step {step} is complete", step=step)

    keeper = Keeper(plan, ranks, kept)
    saving = CheckpointCallback(plan, ranks, stop, keeper, describe, lambda step: state.set_stage("checkpointing"))
    return [saving, ReachedCallback(plan, lost_steps)] if ranks.is_main else [saving]


def _count_resumes(resume: ResumePoint | None) -> int:
    return resume.marker.resumes + 1 if resume else 0


def _count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all)"""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trainable, model.num_parameters()


def _choose_weights(
    plan: TrainingPlan, trainer: Any, ranks: Ranks, terminal: Terminal
) -> tuple[int | None, float | None]:
    """Leaves the weights to be exported in the trainer: (their step if it isn't the last, their validation loss)."""
    eval_loss = loss_after(trainer)
    steps, stopping = trainer.state.global_step, plan.training.early_stopping
    if stopping is not None and steps < trainer.state.max_steps:
        terminal.event("stopped-early", describe_stop(stopping, steps, trainer.state.max_steps), step=steps)
    best = load_best(plan, trainer, ranks)
    if best is not None:
        eval_loss = loss_at(trainer, best)
        terminal.event("best", f"the best weights are those of step {best}: validation loss {eval_loss:.4g}", step=best)
    return best, eval_loss


def _export(
    plan: TrainingPlan,
    state: RunState,
    terminal: Terminal,
    model: Any,
    tokenizer: Any,
    location: str,
    data: PreparedData,
) -> tuple[ArtifactRecord, ...]:
    state.set_stage("exporting")
    terminal.progress(state.progress)
    artifacts = export_artifacts(plan, model, tokenizer, location, _rows_to_verify(data))
    for artifact in artifacts:
        if artifact.difference is not None:
            told = f"the {artifact.type} artifact, reloaded, gives the trained model's logits within {artifact.difference:.2g} of the largest"
            terminal.event("verified", told, artifact=artifact.type, difference=artifact.difference)
    if plan.output.destination is not None:
        deliver_artifacts(plan.output.destination, artifacts)
        terminal.event("delivered", f"the artifacts are in {plan.output.destination}")
    return artifacts


def _prepare(plan: TrainingPlan, ranks: Ranks, terminal: Terminal) -> tuple[str, Any, PreparedData]:
    """Model location, tokenizer and data. One rank of each node downloads, converts and encodes; the others wait."""
    name = ""
    if ranks.is_local_main:
        location = locate_model(plan)
        tokenizer = load_tokenizer(plan, location)
        name = prepare_data(plan, location, tokenizer, terminal.event)
    ranks.barrier()
    if not ranks.is_local_main:
        location = locate_model(plan)
        tokenizer = load_tokenizer(plan, location)
    shared = ranks.share(name)
    if ranks.is_local_main and name != shared:
        raise InvalidInputError(f"dataset.source {plan.dataset.source.uri}: the nodes read different rows from it")
    return location, tokenizer, load_data(plan, shared, tokenizer, terminal.event)


def _with_length(plan: TrainingPlan, max_length: int) -> TrainingPlan:
    """The plan with ``training.maxLength`` as it was decided by the rows."""
    return plan.model_copy(update={"training": plan.training.model_copy(update={"max_length": max_length})})


def _without_samples(plan: TrainingPlan) -> TrainingPlan:
    """The plan without prompts to be answered, where the model only scores."""
    if not OBJECTIVES[plan.objective.type].classifies:
        return plan
    return plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"samples": ()})})


def _count_samples(plan: TrainingPlan, data: PreparedData, state: TrainerState) -> int:
    """Rows taken from the training data so far."""
    training = plan.training
    generation = plan.objective.generation if plan.objective.type in ("grpo", "rloo") else None
    if plan.dataset.streaming or generation is not None:
        batch = training.per_device_batch_size * training.gradient_accumulation * plan.parallelism.world_size
        # Of a prompt that is answered as a group, each answer counts in the batch; an epoch has full batches only.
        return int(state.global_step * batch // (generation.completions if generation else 1))
    return round(state.epoch * len(data.train))


def _find_resume_point(plan: TrainingPlan, ranks: Ranks, data: PreparedData, terminal: Terminal) -> ResumePoint | None:
    """Rank 0 decides; where nodes write to their own disks, the first rank of each of the others fetches it too."""
    resume = None
    store = Store(plan.checkpoint.directory)
    if ranks.is_main:
        if (step := adopt_checkpoint(store, plan, data.fingerprint)) is not None:
            terminal.event("adopted", f"goes on from {plan.checkpoint.origin}", step=step)
        resume = find_resume_point(store, plan, data.fingerprint, lambda text: terminal.event("warning", text))
        discard_later(store, plan, resume.marker.step if resume else 0)
    resume = ranks.share(resume)
    if resume is not None and plan.checkpoint.staging is not None and ranks.is_local_main and not ranks.is_main:
        fetch_checkpoint(store, plan, resume.marker)
    ranks.barrier()
    return resume


def _train(trainer: Any, resume: ResumePoint | None, ranks: Ranks, stop: StopRequest) -> None:
    stop.in_training = True
    try:
        trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)
    except TrainedAlreadyError:
        pass
    finally:
        stop.in_training = False
    if ranks.any(stop.requested):
        raise PreemptedError(f"told to stop; all {trainer.state.max_steps} steps are done and saved")


def _ask_before(
    plan: TrainingPlan, ranks: Ranks, model: Any, location: str, tokenizer: Any, questions: list[Question]
) -> tuple[list[str], dict[str, float]]:
    """The base model's answers to the samples and its figures, on rank 0; the others wait."""
    answers: list[str] = []
    figures: dict[str, float] = {}
    if ranks.is_main and (plan.evaluation.samples or questions or compares_with_base(plan)):
        with whole_base(plan, model, location) as base:
            answers = answer_before(plan, base, tokenizer)
            figures = measure_before(plan, base, tokenizer, questions)
    ranks.barrier()
    return answers, figures


def _release_model(plan: TrainingPlan, trainer: Any, sketch: Any) -> Any:
    """The trained model as it was built, and nobody else's any more: the Trainer lets go of it and of the optimizer.

    Where the ranks have shared it out, rank 0 gets it whole in its host's memory, the others None.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if shards_parameters(plan):
        drop_fetched(trainer)
        model = gather_model(model, sketch)
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    trainer.ref_model = trainer.reward_funcs = None
    handler = trainer.callback_handler
    handler.model = handler.optimizer = handler.lr_scheduler = handler.train_dataloader = None
    return model


def _rows_to_verify(data: PreparedData) -> list[list[int]]:
    rows = data.train if data.validation is None else data.validation
    return [_join_ids(row) for row in islice(rows, _VERIFIED_ROWS)]


def _join_ids(row: dict[str, Any]) -> list[int]:
    """All that the model sees of a row; of a pair, with the preferred answer."""
    names = ("input_ids", "prompt_ids", "chosen_ids", "completion_ids")
    return [token for name in names if name in row for token in row[name]]
