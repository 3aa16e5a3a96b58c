"""Elastic jobs: the same rows for any number of nodes, and pods that end one by one."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_api.compatibility import ELASTIC_SHARE, find_elastic_share
from finetune_api.errors import InvalidFineTuneJob
from finetune_api.names import Phase, Reason
from finetune_api.progress import Progress
from finetune_operator.observe.counts import count_ends
from finetune_operator.spec.parse import parse_finetunejob
from tests.unit.test_interruptions import DISRUPTED, SAVED, pod
from tests.unit.test_status import status_of
from tests.unit.world import RUNNING, UID, build_finetunejob, build_snapshot, build_workload, decide, exited

ELASTIC = {"parallelism": {"nodes": 3, "elastic": {"minNodes": 1}}}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "no GPU",
    "lastTransitionTime": "2026-01-01T11:00:00Z",
}


@given(nodes=st.integers(2, 24), fewest=st.integers(1, 23), gpus=st.sampled_from([1, 8]))
def test_what_is_accepted_can_be_dealt_out_to_every_number_of_nodes(nodes: int, fewest: int, gpus: int) -> None:
    finetunejob = build_finetunejob(
        parallelism={"nodes": nodes, "elastic": {"minNodes": fewest}}, resources={"gpu": {"count": gpus}}
    )
    try:
        job = parse_finetunejob(finetunejob)
    except InvalidFineTuneJob as error:
        refused = {problem.field for problem in error.problems}
    else:
        refused = set()
    if refused:
        assert refused == {"spec.parallelism.elastic.minNodes"}
        assert fewest >= nodes or nodes > 4
        return
    assert find_elastic_share(job.spec) <= ELASTIC_SHARE
    plan = decide(finetunejob)[0].plan
    assert plan.parallelism.strategy == "ddp"
    for number in range(fewest, nodes + 1):
        some = plan.on_nodes(number)
        assert some.training_hash() == plan.training_hash()
        rows = [each.training.gradient_accumulation * each.parallelism.world_size for each in (some, plan)]
        assert rows[0] == rows[1]


def test_the_answers_to_a_prompt_stay_in_one_step_of_any_number_of_nodes() -> None:
    objective = {"type": "grpo", "rewardFunctions": ["number-match"], "generation": {"completions": 9}}
    parallelism = {"nodes": 3, "elastic": {"minNodes": 2}}
    plan = decide(build_finetunejob(objective=objective, parallelism=parallelism))[0].plan
    rows = plan.training.per_device_batch_size * plan.training.gradient_accumulation * plan.parallelism.world_size
    assert (
        rows % 9 == 0
        and plan.on_nodes(2).training.gradient_accumulation == rows // 2 // plan.training.per_device_batch_size
    )


def test_it_runs_as_long_as_the_first_node_does() -> None:
    pods = [pod(0, RUNNING), pod(1, exited(75, SAVED), conditions=DISRUPTED), pod(2, None, conditions=[UNSCHEDULABLE])]
    progress = Progress(run_id=UID, stage="training", step=41, total_steps=90, nodes=1)
    stage, status = status_of(build_snapshot(build_finetunejob(**ELASTIC), build_workload(), pods, progress=progress))
    assert (stage.phase, status["preemptions"], status["progress"]["nodes"]) == (Phase.RUNNING, 1, 1)
    pods = [pod(0, None, conditions=[UNSCHEDULABLE]), pod(1, RUNNING)]
    stage, _ = status_of(build_snapshot(build_finetunejob(**ELASTIC), build_workload(), pods))
    assert stage.reason == Reason.UNSCHEDULABLE


def test_each_preempted_pod_counts() -> None:
    pods = [pod(0, RUNNING), pod(1, exited(75, SAVED)), pod(2, exited(75, SAVED))]
    assert count_ends(build_snapshot(build_finetunejob(**ELASTIC), build_workload(), pods)).preemptions == 2
