"""Where checkpoints are kept, and when they are made."""

from finetune_api import plan as p
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plan.decisions import Decisions
from finetune_operator.plan.layout import Layout, Slot, resolve_source


def decide_checkpoint(
    spec: FineTuneJobSpec, notes: Decisions, output: str, run_id: str, layout: Layout
) -> p.CheckpointPlan:
    """``output``: folder of the output, beside which checkpoints are kept when the job names no storage."""
    asked = spec.checkpoint
    storage = notes.choose("checkpoint.storage", asked.storage, f"{output}/checkpoints", "beside the output")
    is_remote = storage.startswith("s3://")
    if asked.storage is not None:
        storage = _locate(asked.storage, "checkpoints", layout)
    return p.CheckpointPlan(
        directory=f"{storage.rstrip('/')}/{run_id}",
        staging=f"{layout.scratch}/checkpoints/{run_id}" if is_remote or asked.asynchronous else None,
        asynchronous=asked.asynchronous,
        every_steps=asked.every_steps,
        every_minutes=asked.every_minutes,
        keep=asked.keep,
        keep_best=asked.keep_best,
        resume="never" if asked.resume == "never" else "auto",
        origin=_locate(asked.resume, "resume", layout) if "://" in asked.resume else None,
    )


def _locate(uri: str, slot: Slot, layout: Layout) -> str:
    """The folder of a claim's path; what is in S3 as it is."""
    return uri if uri.startswith("s3://") else resolve_source(uri, slot, layout).location
