"""One training run from plan to result, as a table of contents."""

from typing import Any

from transformers import TrainerState

from finetune_api.plan import TrainingPlan
from finetune_api.progress import Result, Sample
from finetune_trainer.checkpoint.callback import CheckpointCallback, TrainedAlreadyError
from finetune_trainer.checkpoint.marker import Marker
from finetune_trainer.checkpoint.resume import ResumePoint, discard_later, find_resume_point
from finetune_trainer.data.prepare import PreparedData, load_data, prepare_data
from finetune_trainer.distributed import Ranks
from finetune_trainer.errors import InvalidInputError, PreemptedError
from finetune_trainer.evaluate.loss import loss_after, loss_before, training_loss
from finetune_trainer.evaluate.samples import answer_before, answer_prompts
from finetune_trainer.export.artifacts import export_artifacts
from finetune_trainer.model.adapter import prepare_method
from finetune_trainer.model.load import load_model, load_tokenizer, require_fitting_vocabulary
from finetune_trainer.model.source import locate_model
from finetune_trainer.objective.build import build_config, build_trainer
from finetune_trainer.objective.parts import Parts
from finetune_trainer.report.callback import ReportCallback
from finetune_trainer.report.result import read_versions, write_result
from finetune_trainer.report.state import RunState, gpu_memory_bytes, peak_host_memory_bytes
from finetune_trainer.report.terminal import Terminal
from finetune_trainer.stop import StopRequest

_VERIFIED_ROWS = 4


def run_training(
    plan: TrainingPlan, ranks: Ranks, state: RunState, terminal: Terminal, stop: StopRequest
) -> Result | None:
    """Prepare, train, evaluate, export; the result, on rank 0 only."""
    location, tokenizer, data = _prepare(plan, ranks, terminal)
    plan = _with_length(plan, data.max_length)
    resume = _find_resume_point(plan, ranks, data, terminal)
    # Before the model: it sets up the engines that decide how the weights are loaded.
    config = build_config(plan, data.validation is not None, resumed=resume is not None)
    model = load_model(plan, location, ranks.local_rank)
    require_fitting_vocabulary(plan, data.largest_id, model)
    before = answer_before(plan, model, tokenizer) if ranks.is_main else []

    report = ReportCallback(state, terminal, plan.training.learning_rate, plan.training.precision)
    report.train_seconds = resume.marker.train_seconds if resume else 0.0
    resumes = resume.marker.resumes + 1 if resume else 0

    def describe(trainer_state: TrainerState) -> Marker:
        return Marker(
            run_id=plan.job.run_id,
            training_hash=plan.training_hash(),
            data_fingerprint=data.fingerprint,
            world_size=ranks.world_size,
            step=trainer_state.global_step,
            epoch=trainer_state.epoch,
            samples_consumed=round(trainer_state.epoch * len(data.train)),
            tokens_seen=trainer_state.num_input_tokens_seen,
            train_seconds=report.train_seconds,
            resumes=resumes,
        )

    def announce(step: int, begins: bool) -> None:
        if begins:
            state.set_stage("checkpointing")
        else:
            state.update(checkpoint_step=step, stage="training")
            terminal.event("checkpoint", f"checkpoint of step {step} is complete", step=step)

    checkpoints = CheckpointCallback(plan, ranks, stop, describe, announce)
    trained, peft_config = prepare_method(plan, model)
    trainer = build_trainer(config, Parts(plan, trained, peft_config, tokenizer, data, [checkpoints, report]))
    if resume is not None:
        state.update(checkpoint_step=resume.marker.step, restarted_from=resume.marker.step)
        terminal.event("resumed", f"going on from the checkpoint of step {resume.marker.step}", step=resume.marker.step)
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    total = trainer.model.num_parameters()
    _train(trainer, resume, ranks, stop)

    state.set_stage("evaluating")
    eval_loss = loss_after(trainer)
    if not ranks.is_main:
        return None
    state.update(eval_loss=eval_loss, loss=training_loss(trainer), step=trainer.state.global_step)
    after = answer_prompts(plan, trainer.accelerator.unwrap_model(trainer.model), tokenizer)
    samples = [
        Sample(prompt=p, before=b, after=a) for p, b, a in zip(plan.evaluation.samples, before, after, strict=True)
    ]
    state.set_stage("exporting")
    terminal.progress(state.progress)
    artifacts = export_artifacts(plan, _release_model(trainer), tokenizer, location, _rows_to_verify(data))
    tokens = trainer.state.num_input_tokens_seen
    result = Result(
        run_id=plan.job.run_id,
        job=plan.job.name,
        steps=trainer.state.global_step,
        epochs=trainer.state.epoch,
        loss=training_loss(trainer),
        eval_loss_before=loss_before(trainer),
        eval_loss=eval_loss,
        tokens_seen=tokens,
        tokens_per_second=tokens / report.train_seconds,
        train_seconds=report.train_seconds,
        peak_host_memory_bytes=peak_host_memory_bytes(),
        peak_gpu_memory_bytes=gpu_memory_bytes()[1],
        trainable_parameters=trainable,
        total_parameters=total,
        resumes=resumes,
        artifacts=artifacts,
        samples=tuple(samples),
        versions=read_versions(),
    )
    write_result(plan, result)
    return result


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
    return location, tokenizer, load_data(plan, shared)


def _with_length(plan: TrainingPlan, max_length: int) -> TrainingPlan:
    """The plan with ``training.maxLength`` as it was decided by the rows."""
    return plan.model_copy(update={"training": plan.training.model_copy(update={"max_length": max_length})})


def _find_resume_point(plan: TrainingPlan, ranks: Ranks, data: PreparedData, terminal: Terminal) -> ResumePoint | None:
    resume = None
    if ranks.is_main:
        resume = find_resume_point(plan, data.fingerprint, lambda text: terminal.event("warning", text))
        discard_later(plan, resume.marker.step if resume else 0)
    return ranks.share(resume)


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


def _release_model(trainer: Any) -> Any:
    """The trained model as it was built, and nobody else's any more: the Trainer lets go of it and of the optimizer."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    handler = trainer.callback_handler
    handler.model = handler.optimizer = handler.lr_scheduler = handler.train_dataloader = None
    return model


def _rows_to_verify(data: PreparedData) -> list[list[int]]:
    rows = data.train if data.validation is None else data.validation
    return [rows[index]["input_ids"] for index in range(min(_VERIFIED_ROWS, len(rows)))]
