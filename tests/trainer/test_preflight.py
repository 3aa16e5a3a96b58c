"""Machines that aren't what the job was promised are told of before anything is loaded."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer import preflight
from finetune_trainer.distributed import Ranks
from tests.trainer.conftest import Start
from tests.trainer.ranks import share_out, start_ranks
from tests.trainer.test_nodes import TWO_NODES, begin

HONEST: dict[str, Any] = {"gpus": 0, "shared_memory_bytes": 2**20, "rdma": False}


@pytest.mark.parametrize(
    ("promised", "told"),
    [
        ({"gpus": 8}, "resources.gpu.count promises 8 GPUs, and NVIDIA's driver doesn't answer: "),
        ({"shared_memory_bytes": 2**50}, "resources.sharedMemory promises 1048576.0 GiB"),
        ({"rdma": True}, "network.rdma asks for a device, and there is no /dev/infiniband/uverbs*"),
        ({"free_disk_bytes": 2**60}, "preflight.minFreeDisk wants 1073741824.0 GiB"),
    ],
    ids=["gpus", "shared-memory", "rdma", "disk"],
)
def test_a_promise_that_this_machine_breaks(
    make: Callable[..., TrainingPlan], monkeypatch: pytest.MonkeyPatch, promised: dict[str, Any], told: str
) -> None:
    monkeypatch.setenv("NODE_NAME", "node-7")
    preflight.check_machine(make(preflight=HONEST))
    with pytest.raises(preflight.PreflightError) as caught:
        preflight.check_machine(make(preflight=HONEST | promised))
    assert str(caught.value).startswith("preflight on node node-7: ")
    assert told in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(make: Callable[..., TrainingPlan], start: Start) -> None:
    trainer = start(make(preflight=HONEST | {"rdma": True, "free_disk_bytes": 2**60}))
    assert trainer.wait() == ExitCode.PREFLIGHT_FAILED
    assert trainer.termination["reason"] == "PreflightFailed"
    assert "uverbs" in trainer.termination["message"] and "minFreeDisk" in trainer.termination["message"]
    assert [event["event"] for event in trainer.events()] == ["failed"]


def test_ranks_measure_how_fast_they_reduce_and_go_on(make: Callable[..., TrainingPlan], start: Start) -> None:
    training = {"per_device_batch_size": 1, "max_steps": 2, "epochs": None}
    ranks = start_ranks(start, make(parallelism=share_out("ddp"), training=training, preflight=HONEST))
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()[-3000:]
    (measured,) = ranks[0].events("preflight")
    assert 1e6 < measured["busBandwidth"] < 1e12
    assert measured["message"].startswith("all-reduce at ")


def test_a_slow_network_is_one_failure_however_many_nodes_see_it(
    make: Callable[..., TrainingPlan], tmp_path: Any
) -> None:
    nodes = begin(make(parallelism=TWO_NODES, preflight=HONEST | {"bus_bandwidth": 1e15}), tmp_path)
    assert [node.wait(120) for node in nodes] == [ExitCode.PREFLIGHT_FAILED, ExitCode.PEER_LOST]
    words = (tmp_path / "0" / "termination").read_text()
    assert '"reason":"PreflightFailed"' in words
    assert "preflight.minBusBandwidth wants 1000000.00" in words


class Clocks(Ranks):
    """Ranks whose clocks differ."""

    def barrier(self) -> None:
        """All are here."""

    def gather(self, value: Any) -> list[Any]:
        now, _ = value
        return [(now, "early"), (now + 40, "late"), (now + 3, "between")]


def test_the_clock_that_is_wrong_is_named() -> None:
    (problem,) = preflight._find_skew(Clocks(0, 0, 3))
    assert problem.startswith("the clock of late is 40 s before that of early")


def test_bus_bandwidth_is_that_of_nccls_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md: for 4 ranks 1.5 x the bytes a second."""
    import torch.distributed

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda data: time.sleep(0.05))
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value] * 4)
    measured = preflight.measure_bus_bandwidth(Ranks(0, 0, 4), "cpu")
    assert measured == pytest.approx(1.5 * 16 * 2**20 / 0.05, rel=0.1)
