"""A real S3 server process: Versity's gateway over a folder. It can be stopped and started again at the same address."""

import os
import socket
import subprocess
import time
from pathlib import Path

from tests.cluster.harness.binaries import ensure_tools
from tests.ports import free_port

ACCESS, SECRET, BUCKET = "reader", "not-a-secret", "tales"
_MODULE = Path(__file__).parent / "versitygw"
_PACKAGE = "github.com/versity/versitygw/cmd/versitygw"


class S3Server:
    """`folder` has its bucket."""

    def __init__(self, root: Path, host: str = "127.0.0.1") -> None:
        self.folder = root / "buckets" / BUCKET
        self.folder.mkdir(parents=True)
        (root / "sidecar").mkdir()
        self._root, self._host, self._port = root, host, free_port()
        self._program = ensure_tools(_MODULE, {"versitygw": _PACKAGE}) / "versitygw"
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """What opens it."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self._host}:{self._port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def start(self) -> None:
        options = ["--access", ACCESS, "--secret", SECRET, "--port", f"{self._host}:{self._port}"]
        # Attributes of objects in a folder of their own: not every file system has them.
        backend = ["posix", "--sidecar", str(self._root / "sidecar"), str(self._root / "buckets")]
        log = self._root / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, *options, *backend], stdout=output, stderr=output, env=dict(os.environ)
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self._process.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex((self._host, self._port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError(log.read_text())

    def put(self, source: Path, key: str) -> str:
        """The address of a file or folder, once it is in the bucket: by the protocol, as the server keeps more than the bytes."""
        from pyarrow import fs

        place, endpoint = f"{BUCKET}/{key}", f"{self._host}:{self._port}"
        remote = fs.S3FileSystem(
            access_key=ACCESS, secret_key=SECRET, region="us-east-1", scheme="http", endpoint_override=endpoint
        )
        fs.copy_files(str(source), place, destination_filesystem=remote)
        return f"s3://{place}"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
