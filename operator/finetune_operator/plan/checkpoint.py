"""Where checkpoints are kept, and when they are made."""

from finetune_api import plan as p
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plan.decisions import Decisions
from finetune_operator.plan.layout import Layout, parse_source, resolve_source


def decide_checkpoint(
    spec: FineTuneJobSpec, notes: Decisions, output: str, run_id: str, layout: Layout
) -> p.CheckpointPlan:
    """``output``: folder of the output, beside which checkpoints are kept when the job names no storage."""
    asked = spec.checkpoint
    storage = notes.choose("checkpoint.storage", asked.storage, f"{output}/checkpoints", "beside the output")
    is_remote = storage.startswith("s3://")
    if asked.storage is not None and not is_remote:
        claim = parse_source(storage)
        storage = f"{layout.claim('checkpoints', claim.name)}/{claim.path}"
    origin = None if asked.resume in ("auto", "never") else resolve_source(asked.resume, "resume", layout)
    return p.CheckpointPlan(
        directory=f"{storage.rstrip('/')}/{run_id}",
        staging=f"{layout.scratch}/checkpoints/{run_id}" if is_remote or asked.asynchronous else None,
        asynchronous=asked.asynchronous,
        every_steps=asked.every_steps,
        every_minutes=asked.every_minutes,
        keep=asked.keep,
        keep_best=asked.keep_best,
        resume="never" if asked.resume == "never" else "auto",
        origin=origin.uri if origin is not None and origin.kind == "s3" else origin and origin.location,
    )
