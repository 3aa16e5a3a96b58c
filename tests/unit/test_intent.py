from finetune_api.names import Reason
from finetune_operator.intent import decide_intent
from tests.unit.world import UID, build_finetunejob, build_snapshot, build_workload, decide


def kinds(manifests):
    return [manifest["kind"] for manifest in manifests]


def test_everything_is_made_when_nothing_is_there():
    job = build_finetunejob()
    intent = decide_intent(build_snapshot(job), decide(job)[1])
    assert kinds(intent.apply) == ["PersistentVolumeClaim", "ConfigMap", "Job"]


def test_a_pass_that_died_halfway_is_completed():
    job = build_finetunejob()
    manifests = decide(job)[1]
    children = {("ConfigMap", "bot-plan"): manifests[1], ("PersistentVolumeClaim", "bot-output"): manifests[0]}
    assert kinds(decide_intent(build_snapshot(job, children=children), manifests).apply) == ["Job"]


def test_an_outdated_plan_is_replaced_before_the_start_and_kept_after_it():
    old = decide(build_finetunejob())[1][1]
    changed = build_finetunejob(training={"epochs": 7})
    manifests = decide(changed)[1]
    children = {("ConfigMap", "bot-plan"): old, ("PersistentVolumeClaim", "bot-output"): manifests[0]}
    intent = decide_intent(build_snapshot(changed, children=children), manifests)
    assert (kinds(intent.delete), kinds(intent.apply)) == (["ConfigMap"], ["ConfigMap", "Job"])
    started = changed | {"status": {"workload": {"uid": "gone"}}}
    intent = decide_intent(build_snapshot(started, children=children), manifests)
    assert (intent.delete, kinds(intent.apply)) == ((), ["Job"])


def test_a_foreign_job_of_the_same_name_is_left_alone():
    job = build_finetunejob()
    intent = decide_intent(build_snapshot(job, build_workload(owner="somebody")), decide(job)[1])
    assert intent.obstacle is not None and intent.obstacle.reason == Reason.NAME_CONFLICT
    assert not intent.apply and not intent.workload_patch


def test_children_of_a_deleted_namesake_are_waited_for():
    job = build_finetunejob()
    manifests = decide(job)[1]
    plan = manifests[1] | {"metadata": manifests[1]["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    intent = decide_intent(build_snapshot(job, children={("ConfigMap", "bot-plan"): plan}), manifests)
    assert intent.obstacle is not None and intent.obstacle.reason == Reason.DELETING and not intent.apply


def test_a_retained_output_claim_is_used_again():
    job = build_finetunejob()
    manifests = decide(job)[1]
    claim = {"metadata": {"name": "bot-output", "labels": {"finetune.dev/job-name": "bot"}}}
    intent = decide_intent(build_snapshot(job, children={("PersistentVolumeClaim", "bot-output"): claim}), manifests)
    assert kinds(intent.apply) == ["ConfigMap", "Job"]


def test_only_fields_that_follow_are_patched():
    job = build_finetunejob(runPolicy={"suspend": True, "ttlAfterFinished": "1h", "backoffLimit": 9})
    intent = decide_intent(build_snapshot(job, build_workload(activeDeadlineSeconds=60)), decide(job)[1])
    assert intent.workload_patch == {"suspend": True, "activeDeadlineSeconds": None, "ttlSecondsAfterFinished": 3600}
    finished = build_workload(finished=("Complete", "CompletionsReached"))
    assert decide_intent(build_snapshot(job, finished), decide(job)[1]).workload_patch == {
        "ttlSecondsAfterFinished": 3600
    }


def test_nothing_is_done_to_a_job_that_is_as_it_should_be():
    job = build_finetunejob()
    intent = decide_intent(build_snapshot(job, build_workload(owner=UID)), decide(job)[1])
    assert not (intent.apply or intent.delete or intent.workload_patch or intent.obstacle)
