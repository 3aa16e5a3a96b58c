"""Models and adapters in S3, on a real server process."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.errors import PreemptedError
from finetune_trainer.files import list_files
from finetune_trainer.s3 import is_refused
from finetune_trainer.store import Store
from tests.trainer.conftest import Start, adapter_bytes
from tests.trainer.s3_server import BUCKET, S3Server


def locate(uri: str) -> ResolvedSource:
    return ResolvedSource(uri=uri, kind="s3", location=uri.removeprefix("s3://"))


def test_a_model_and_an_adapter_from_there_train_as_those_of_a_folder(
    make: Callable[..., TrainingPlan], start: Start, server: S3Server, tiny_model: Path
) -> None:
    def train(root: str, base: ResolvedSource | None, adapter: ResolvedSource | None = None) -> TrainingPlan:
        plan = make(
            root=root,
            method={"resume_adapter": adapter} if adapter else {},
            **({"model": {"source": base}} if base else {}),
        )
        trainer = start(plan, environment=server.environment)
        assert trainer.wait() == ExitCode.OK, trainer.log.read_text()
        return plan

    local = train("local", None)
    base = locate(server.put(tiny_model, "models/tiny"))
    remote = train("remote", base)
    assert adapter_bytes(remote) == adapter_bytes(local)
    copies = Path(remote.cache_directory) / "s3"
    [copy] = copies.iterdir()
    assert [path.name for path in list_files(copy)] == [path.name for path in list_files(tiny_model)]

    folder = Path(local.output.directory) / "adapter"
    on = train("on", None, ResolvedSource(uri=f"file://{folder}", kind="file", location=str(folder)))
    remote_on = train("remote-on", base, locate(server.put(folder, "adapters/tiny")))
    assert adapter_bytes(remote_on) == adapter_bytes(on) != adapter_bytes(local)
    assert len(list((Path(remote_on.cache_directory) / "s3").iterdir())) == 2


def test_what_is_not_there_is_told_by_its_field(
    make: Callable[..., TrainingPlan], start: Start, server: S3Server, tiny_model: Path
) -> None:
    nowhere = locate(f"s3://{BUCKET}/none")
    for field, changes in (("model.source", {"model": {"source": nowhere}}), ("method.resumeAdapter", {"method": {"resume_adapter": nowhere}})):  # fmt: skip
        trainer = start(make(**changes), environment=server.environment)
        assert trainer.wait() == ExitCode.INVALID
        told = trainer.termination["message"]
        assert told.startswith(f"{field} s3://{BUCKET}/none: nothing is at {BUCKET}/none; "), told
        assert "AWS_ACCESS_KEY_ID" in told


def test_a_bucket_in_another_region_is_not_waited_for() -> None:
    """AWS's own answer, which no server here gives (its words: https://github.com/crowemi/target-s3/issues/4)."""
    told = "AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: Unable to parse ExceptionName: PermanentRedirect"
    assert is_refused(OSError(told))
    assert not is_refused(OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"))


def test_who_is_told_to_stop_waits_for_no_file(opened: None) -> None:
    """As when a model of many gigabytes is under way: the signal's exception passes while others still copy."""
    store = Store(f"s3://{BUCKET}")
    release, begun = threading.Event(), threading.Event()

    def copy(number: int) -> None:
        if number == 0:
            assert begun.wait(60)
            raise PreemptedError("told to stop")
        begun.set()
        assert release.wait(60)

    with pytest.raises(PreemptedError):
        store.do_each(copy, range(50))
    release.set()
    assert store.do_each(lambda number: number * 2, range(20)) == [number * 2 for number in range(20)]
