"""A cluster to play with: ``python -m tests.node.harness up|down|demo|images|sbom``."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.chart.programs import find_program
from tests.cluster.harness.binaries import MissingProgramError, cache_folder, ensure_binaries
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.images import OPERATOR, REPOSITORY, TRAINER
from tests.node.harness.node import Node, NodeInUseError
from tests.node.harness.sbom import build_sbom

_CACHE = cache_folder() / "node"
_LOG = _CACHE / "cluster.log"
_STATE = _CACHE / "cluster.json"
_QUICKSTART = REPOSITORY / "manifests" / "examples" / "quickstart.yaml"
_NAMESPACE = "finetune-system"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.node.harness", description=__doc__)
    commands = {"up": up, "down": down, "demo": demo, "images": build_images, "sbom": write_sboms, "serve": serve}
    parser.add_argument("command", choices=[name for name in commands if name != "serve"])
    command = "serve" if sys.argv[1:] == ["serve"] else parser.parse_args().command
    try:
        commands[command]()
    except (MissingProgramError, NodeInUseError) as error:
        sys.exit(str(error))


def up() -> None:
    """Starts the cluster in the background and prints how to reach it."""
    if not _is_up():
        _CACHE.mkdir(parents=True, exist_ok=True)
        _STATE.unlink(missing_ok=True)
        print(f"starting a cluster, the first time for many minutes; its log: {_LOG}", flush=True)
        with _LOG.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.node.harness", "serve"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        while not _STATE.exists():
            if process.poll() is not None:
                sys.exit(_LOG.read_text()[-3000:])
            time.sleep(0.2)
    state = json.loads(_STATE.read_text())
    print(*state["report"], "", f"export KUBECONFIG={state['kubeconfig']}", "make cluster-down ends it", sep="\n")


def down() -> None:
    """Ends the cluster."""
    if _is_up():
        process = json.loads(_STATE.read_text())["process"]
        os.kill(process, signal.SIGTERM)
        wait_until(lambda: not _is_running(process), "the end of the cluster")
    _STATE.unlink(missing_ok=True)


def demo() -> None:
    """Starts the cluster, installs the chart and fine-tunes a small model with the quickstart."""
    up()
    env = os.environ | {"KUBECONFIG": json.loads(_STATE.read_text())["kubeconfig"]}
    helm, kubectl = find_program("helm"), ensure_binaries() / "kubectl"

    def run(*command: str | Path) -> None:
        print("\n$", Path(command[0]).name, *command[1:], flush=True)
        subprocess.run(command, env=env, check=True)

    install = ("--namespace", _NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m")
    run(helm, "upgrade", "--install", "finetune-operator", REPOSITORY / "helm" / "finetune-operator", *install)
    run(kubectl, "apply", "--filename", _QUICKSTART)
    run(kubectl, "wait", "--for=condition=Complete", "--timeout=30m", "finetunejob/quickstart")
    run(kubectl, "get", "finetunejob", "quickstart", "--output", "wide")
    # The claim's folder, which is on this machine.
    select = "jsonpath={.items[?(@.spec.claimRef.name=='quickstart-output')].spec.local.path}"
    command: list[str | Path] = [kubectl, "get", "persistentvolumes", "--output", select]
    output = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    for sample in json.loads(Path(output, "result.json").read_text())["samples"]:
        print(f"\n? {sample['prompt']}\n  before: {sample['before']}\n  after:  {sample['after']}")


def build_images() -> None:
    """Builds the images and takes them into the node's store."""
    with Node() as node:
        print(*node.describe(), sep="\n")


def write_sboms() -> None:
    """Writes dist/sbom/IMAGE.cdx.json of both images, builds these if needed."""
    folder = REPOSITORY / "dist" / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    with Node() as node:
        for image in (OPERATOR, TRAINER):
            file = folder / f"{image}.cdx.json"
            file.write_text(json.dumps(build_sbom(node.images.builder, image), indent=1) + "\n")
            print(file)


def serve() -> None:
    """Keeps a cluster until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with Node() as node:
        kubeconfig = _CACHE / "kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(node.control_plane.kubectl("config", "view", "--raw", "--flatten"))
        state = {"process": os.getpid(), "kubeconfig": str(kubeconfig), "report": node.describe()}
        partial = _STATE.with_suffix(".partial")
        partial.write_text(json.dumps(state))
        partial.rename(_STATE)
        signal.pause()


def _is_up() -> bool:
    return _STATE.exists() and _is_running(json.loads(_STATE.read_text())["process"])


def _is_running(process: int) -> bool:
    """Whether this process is a cluster of ours: after a crash its number may be another's."""
    try:
        return b"tests.node.harness" in Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    main()
