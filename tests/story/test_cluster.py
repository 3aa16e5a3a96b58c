"""The quickstart on the real API server; a test kubelet runs the pod's real command as a process of this machine.

Its first steps only: what it learns in all of them is shown on the real node (tests/node/test_quickstart.py) and by `make demo`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

from finetune_api import names
from tests.cluster.harness.waiting import wait_until
from tests.cluster.operator_process import USER, OperatorProcess

PROGRESS_SECONDS = 4
STEPS = 12
QUICKSTART = Path(__file__).parents[2] / "manifests" / "examples" / "quickstart.yaml"


def test_quickstart(control_plane, kubeconfig, namespace, tmp_path, kubelet, jobs):
    kubelet(mode="process", entrypoint=names.ENTRYPOINT)
    job, data = yaml.safe_load_all(QUICKSTART.read_text())
    del job["spec"]["training"]["epochs"], job["spec"]["evaluation"]
    job["spec"]["training"] |= {"maxSteps": STEPS, "loggingSteps": 1}
    shortened = yaml.safe_dump_all([job, data])
    with OperatorProcess(kubeconfig, namespace, tmp_path, progressInterval=f"{PROGRESS_SECONDS}s") as operator:
        operator.read_health("/readyz")
        begin = control_plane.audit.mark()
        began = time.monotonic()
        control_plane.kubectl("apply", "--filename", "-", namespace=namespace, stdin=shortened)
        control_plane.kubectl(
            "wait", "--for=condition=Complete", "ftj/quickstart", "--timeout=1500s", namespace=namespace
        )
        seconds = time.monotonic() - began
        print(f"\ncomplete after {seconds:.0f} s")
        print(control_plane.kubectl("get", "ftj", "-o", "wide", namespace=namespace))
        print(control_plane.kubectl("describe", "ftj", "quickstart", namespace=namespace).split("Status:")[1])
        live = jobs.get("quickstart")
        writes = control_plane.audit.writes(begin, user=USER, namespace=namespace)

        # The story that the status told on the way.
        statuses = [write.body["status"] for write in writes if write.subresource == "status"]
        phases = [status["phase"] for status in statuses]
        turns = [phase for phase, before in zip(phases, [None, *phases], strict=False) if phase != before]
        print("phases:", " -> ".join(turns))
        assert turns[0] == "Pending"
        assert turns[-1] == "Succeeded"
        assert {"Preparing", "Running"} <= set(turns)
        steps = [status["progress"]["step"] for status in statuses if "progress" in status]
        assert steps == sorted(steps)
        assert len(set(steps)) >= 3
        assert live["status"]["progress"]["percent"] == 100
        assert live["status"]["progress"]["step"] == STEPS

        # Its price: eight writes, and one for each time that the progress was read.
        print(f"writes: {len(writes)} in {seconds:.0f} s")
        assert len(writes) <= 8 + seconds / PROGRESS_SECONDS + 1

        # `render` prints what was applied, object by object.
        command = [Path(sys.executable).with_name("finetune"), "render", "-f", "-", "-o", "json"]
        rendered = json.loads(
            subprocess.run(command, input=json.dumps(live), capture_output=True, text=True, check=True).stdout
        )
        applied = [write.body for write in writes if write.verb == "patch"]
        assert [manifest["kind"] for manifest in applied] == ["PersistentVolumeClaim", "ConfigMap", "Job"]
        assert rendered["items"] == applied

        # The adapter lies where the status says.
        (artifact,) = live["status"]["artifacts"]
        assert artifact["uri"] == "pvc://quickstart-output/adapter"
        output = control_plane.claim_folder(namespace, "quickstart-output")
        assert (output / "adapter" / "adapter_model.safetensors").stat().st_size > 100_000
        result = json.loads((output / "result.json").read_text())
        assert result["evalLoss"] < result["evalLossBefore"]

        # Deletion collects all children; the output stays.
        control_plane.kubectl("delete", "--filename", str(QUICKSTART), namespace=namespace)
        wait_until(
            lambda: not jobs.workloads() and not jobs.children("pods") and not jobs.children("configmaps"),
            "no children",
        )
        assert [claim["metadata"]["name"] for claim in jobs.children("persistentvolumeclaims")] == ["quickstart-output"]
        events = jobs.api.items(f"/api/v1/namespaces/{namespace}/events")
        assert {"WorkloadCreated", "Succeeded"} <= {
            event["reason"] for event in events if event["involvedObject"]["kind"] == names.KIND
        }
