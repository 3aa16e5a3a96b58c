"""Two ranks by each strategy: the training of one process, stopped and resumed to the bit. The cells strategy x method x
objective are in ``test_matrix``."""

import json
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_api.progress import Result
from finetune_api.strategies import STRATEGIES, StrategyType
from finetune_trainer.errors import InvalidInputError
from tests.trainer.conftest import Start
from tests.trainer.plans import make_plan, write_conversations
from tests.trainer.ranks import run_ranks, share_out, start_ranks
from tests.trainer.running import losses, run

SHARED: list[StrategyType] = [name for name in STRATEGIES if name != "single"]
FULL = {"type": "full", "lora": None}
LORA = {"type": "lora", "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1, "target_modules": ("all-linear",)}}
STEPS = 4


def _plan(root: Path, model: Path, batch: int, accumulation: int, **changes: object) -> TrainingPlan:
    """Full fine-tuning by 4 steps of 8 rows, 16 rows an epoch, which every number of ranks divides."""
    root.mkdir(parents=True, exist_ok=True)
    training = {
        "epochs": None,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "per_device_batch_size": batch,
        "gradient_accumulation": accumulation,
    }
    data = write_conversations(root / "data.jsonl", 20)
    sections = {"method": FULL, "output": {"artifacts": ("merged",), "verify": True}, **changes}
    return make_plan(root, model, data, training=training, **sections)


def _result(plan: TrainingPlan) -> Result:
    return Result.model_validate_json((Path(plan.output.directory) / "result.json").read_bytes())


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Result]:
    """Losses of each step and the result of one process that takes all 8 rows at once."""
    plan = _plan(tmp_path_factory.mktemp("alone"), tiny_model, 8, 1)
    result = run(plan)
    return losses(plan), result


@pytest.mark.parametrize("strategy", SHARED)
def test_two_ranks_equal_one_process(
    strategy: StrategyType, alone: tuple[list[float], Result], tiny_model: Path, tmp_path: Path, start: Start
) -> None:
    """Whether a rank takes its rows at once or one by one. What is exported was loaded again and compared."""
    expected, result = alone
    for batch, accumulation in ((4, 1), (1, 4)):
        plan = _plan(tmp_path / f"by-{batch}", tiny_model, batch, accumulation, parallelism=share_out(strategy))
        run_ranks(start, plan)
        mine = losses(plan)
        print(
            f"{strategy}, batch {batch} x {accumulation}: {max(abs(a - b) for a, b in zip(mine, expected, strict=True)):.1g}"
        )
        assert mine == pytest.approx(expected, abs=1e-4)
        told = _result(plan)
        assert told.eval_loss_before > told.eval_loss
        assert (told.trainable_parameters, told.total_parameters, told.tokens_seen) == (
            result.trainable_parameters,
            result.total_parameters,
            result.tokens_seen,
        )


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp"])
def test_a_stopped_run_ends_as_one_that_was_never_stopped(
    strategy: StrategyType, tiny_model: Path, tmp_path: Path, start: Start
) -> None:
    """SIGTERM reaches one rank; all stop at the same step, behind a checkpoint that names every rank's share."""
    lora = {
        "method": LORA,
        "output": {"artifacts": ("adapter",), "verify": True},
        "evaluation": {"samples": ("What is 2 plus 2?",), "sample_tokens": 4},
        "parallelism": share_out(strategy),
    }
    whole, stopped = (_plan(tmp_path / name, tiny_model, 2, 2, **lora) for name in ("whole", "stopped"))
    run_ranks(start, whole)

    ranks = start_ranks(start, stopped, sigterm_after_step=1)
    assert [rank.wait() for rank in ranks] == [ExitCode.PREEMPTED, ExitCode.PREEMPTED], ranks[0].log.read_text()
    folder = max(Path(stopped.checkpoint.directory).glob("checkpoint-*"))
    files = [record["path"] for record in json.loads((folder / "finetune-checkpoint.json").read_text())["files"]]
    assert sorted(files) == sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "finetune-checkpoint.json"
    )
    share = "optimizer_0/__{}_0.distcp" if strategy == "fsdp" else "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    for rank in range(2):
        assert f"rng_state_{rank}.pth" in files
        assert any(name.endswith(share.format(rank)) for name in files), files

    resumed = run_ranks(start, stopped)
    assert resumed[0].events("resumed")
    assert losses(stopped) == losses(whole)
    assert _result(stopped).artifacts[0].sha256 == _result(whole).artifacts[0].sha256
    assert _result(stopped).samples == _result(whole).samples


def test_what_zero_offloads_trains_the_same(
    alone: tuple[list[float], Result], tiny_model: Path, tmp_path: Path, start: Start
) -> None:
    engine = {"offload_optimizer": "cpu", "offload_parameters": "cpu"}
    plan = _plan(tmp_path, tiny_model, 4, 1, parallelism=share_out("zero3", **engine))
    run_ranks(start, plan)
    assert losses(plan) == pytest.approx(alone[0], abs=1e-4)


def test_hybrid_sharding_keeps_a_copy_on_each_node(
    alone: tuple[list[float], Result], tiny_model: Path, tmp_path: Path, start: Start
) -> None:
    """Four ranks as two nodes of two: each weight is cut in two, not in four."""
    from torch.distributed.checkpoint import FileSystemReader

    plan = _plan(tmp_path, tiny_model, 2, 1, parallelism=share_out("fsdp", 4, sharding="hybrid", nodes=2))
    run_ranks(start, plan)
    assert losses(plan) == pytest.approx(alone[0], abs=1e-4)
    checkpoint = Path(plan.checkpoint.directory) / f"checkpoint-{STEPS}"
    weights = FileSystemReader(checkpoint / "pytorch_model_fsdp_0").read_metadata().state_dict_metadata
    assert {len(weight.chunks) for weight in weights.values()} == {2}


def test_what_cannot_be_shared_out_is_told(tiny_model: Path, tmp_path: Path) -> None:
    plan = _plan(tmp_path, tiny_model, 4, 1, parallelism=share_out("fsdp", 1, offload=True))
    with pytest.raises(InvalidInputError, match=r"parallelism\.offload\.parameters cpu: without a GPU"):
        run(plan)
