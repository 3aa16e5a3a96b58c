"""kubectl as a subprocess: it knows contexts, credentials and proxies."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api import names
from finetune_operator.cli.errors import CommandError

Object = dict[str, Any]
RESOURCE = f"{names.PLURAL}.{names.GROUP}"


class KubectlError(CommandError):
    """kubectl said no; in its own words."""


@dataclass(frozen=True)
class Kubectl:
    """Calls of kubectl with the same flags: --namespace, --context and the like.

    All methods raise KubectlError.
    """

    flags: tuple[str, ...] = ()

    def run(self, *arguments: str) -> str:
        """What it prints."""
        command = self._command(*arguments)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise KubectlError("kubectl is not on PATH: install it") from None
        if done.returncode:
            raise KubectlError(_own_words(done.stderr))
        return done.stdout

    def show(self, *arguments: str) -> int:
        """Lets it print to the terminal itself; its exit status."""
        return subprocess.run(self._command(*arguments), check=False).returncode

    def fetch_job(self, name: str) -> Object:
        """A FineTuneJob."""
        job: Object = json.loads(self.run("get", RESOURCE, name, "--output=json"))
        return job

    def list_objects(self, kind: str, *arguments: str) -> list[Object]:
        """The objects of a kind in the namespace."""
        items: list[Object] = json.loads(self.run("get", kind, "--output=json", *arguments))["items"]
        return items

    def watch_job(self, name: str) -> Iterator[Object]:
        """A FineTuneJob now and after each change, until it is deleted or the API server ends the watch."""
        command = self._command("get", RESOURCE, name, "--watch", "--output-watch-events", "--output=json")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            try:
                for event in _decode_stream(process.stdout):
                    if event["type"] == "DELETED":
                        raise KubectlError(f"{names.SINGULAR} {name} was deleted")
                    yield event["object"]
                if process.wait():
                    raise KubectlError(_own_words(process.stderr.read()))
            finally:
                process.terminate()

    def set_suspend(self, name: str, suspend: bool) -> None:
        """Asks to stop a FineTuneJob, or to let it go on."""
        patch = json.dumps({"spec": {"runPolicy": {"suspend": suspend}}})
        self.run("patch", RESOURCE, name, "--type=merge", f"--patch={patch}")

    def _command(self, *arguments: str) -> list[str]:
        return ["kubectl", *arguments, *self.flags]


def _own_words(error: str) -> str:
    return re.sub(r"^(error: |Error from server \(\w+\): )", "", error.strip())


def _decode_stream(lines: Iterator[str] | Any) -> Iterator[Object]:
    """JSON objects that follow one another, each of one or several lines."""
    text = ""
    for line in lines:
        text += line
        if line.startswith("}") or (line.startswith("{") and line.endswith("}\n")):
            yield json.loads(text)
            text = ""
