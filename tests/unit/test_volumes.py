"""Claims of a job, each one volume of the pod."""

from tests.unit.world import build_finetunejob, decide


def mounted(**sections):
    """({claim: its volume's readOnly}, {path: (claim, the mount's readOnly)})"""
    pod = decide(build_finetunejob(**sections))[1][-1]["spec"]["template"]["spec"]
    volumes, mounts = pod["volumes"], pod["containers"][0]["volumeMounts"]
    claims = {
        volume["name"]: volume["persistentVolumeClaim"] for volume in volumes if "persistentVolumeClaim" in volume
    }
    assert len({claim["claimName"] for claim in claims.values()}) == len(claims)
    assert {mount["name"] for mount in mounts} == {volume["name"] for volume in volumes}
    return (
        {claim["claimName"]: claim.get("readOnly", False) for claim in claims.values()},
        {
            mount["mountPath"]: (claims[mount["name"]]["claimName"], mount.get("readOnly", False))
            for mount in mounts
            if mount["name"] in claims
        },
    )


def test_what_is_read_from_one_claim_is_one_volume():
    claims, paths = mounted(
        model={"source": "pvc://data/model"},
        dataset={"source": "pvc://data/train.jsonl", "validation": {"source": "pvc://data/test.jsonl"}},
    )
    assert claims == {"data": True, "bot-output": False}
    read = {path for path, (claim, read_only) in paths.items() if claim == "data" and read_only}
    assert read == {"/mnt/finetune/model", "/mnt/finetune/dataset", "/mnt/finetune/validation"}


def test_what_is_written_to_a_claim_that_is_read_too_is_one_volume():
    claims, paths = mounted(
        dataset={"source": "pvc://team/train.jsonl"},
        output={"destination": "pvc://team/out"},
        podTemplate={
            "volumes": [{"name": "mine", "persistentVolumeClaim": {"claimName": "team", "readOnly": True}}],
            "volumeMounts": [{"name": "mine", "mountPath": "/data/mine", "readOnly": True}],
        },
    )
    assert claims == {"team": False}
    assert paths == {
        "/mnt/finetune/output": ("team", False),
        "/mnt/finetune/dataset": ("team", True),
        "/data/mine": ("team", True),
    }


def test_a_job_that_has_everything_in_buckets_needs_no_claim():
    job = build_finetunejob(
        model={"source": "s3://models/base"},
        dataset={"source": "s3://data/train.jsonl"},
        output={"destination": "s3://models/bot"},
    )
    decided, manifests = decide(job)
    assert "PersistentVolumeClaim" not in {manifest["kind"] for manifest in manifests}
    pod = manifests[-1]["spec"]["template"]["spec"]
    assert not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert {"name": "output", "emptyDir": {}} in pod["volumes"]
    plan = decided.plan
    assert (plan.output.directory, plan.output.destination) == ("/mnt/finetune/output", "s3://models/bot")
    assert plan.checkpoint.directory == f"s3://models/bot/checkpoints/{plan.job.run_id}"
    assert plan.checkpoint.folder.startswith("/tmp/finetune/")
