"""Rows that are encoded as the training takes them, and never stand on the disk as a whole."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import TrainingPlan
from finetune_trainer.data.clean import Deduplicator
from finetune_trainer.data.encode import Encoder
from finetune_trainer.data.ingest import Origin, encode_rows
from finetune_trainer.data.rows import Row, kind_of
from finetune_trainer.data.tally import Tally
from finetune_trainer.errors import InvalidInputError

_SHUFFLED = 1000
"""Rows that wait in memory to be drawn from."""


def require_streamable(plan: TrainingPlan) -> None:
    """Raises: InvalidInputError for settings that need all rows at once."""
    dataset, training = plan.dataset, plan.training
    counts_epochs, other_rows = training.max_steps is None, OBJECTIVES[plan.objective.type].rows != "language"
    refused = {
        "training.epochs: rows that were never counted make no epoch, set training.maxSteps": counts_epochs,
        "training.maxLength auto: it is decided by all rows, set a number": training.max_length == 0,
        "training.packing: it looks for rows that fill a sequence together, use none": training.packing != "none",
        "training.autoFindBatchSize: it tries the longest rows, set training.perDeviceBatchSize": training.batch_search,
        "dataset.validation.fraction: use dataset.validation.source": dataset.validation_fraction is not None,
        "dataset.mixtures: their share is of all rows": bool(dataset.mixtures),
        f"objective.type {plan.objective.type}: use sft or pretrain": other_rows,
    }
    for setting, holds in refused.items():
        if holds:
            raise InvalidInputError(f"dataset.streaming does not go with {setting}; or leave streaming out")


class RowStream:
    """Called, it yields the training rows, pass after pass without an end: a run that resumes finds its place by the number
    of rows before it, in whichever pass that is."""

    def __init__(self, plan: TrainingPlan, encoder: Encoder, tell: Callable[[str, str], None]) -> None:
        self._plan = plan
        self._encoder = encoder
        self._tell = tell

    def __getstate__(self) -> dict[str, Any]:
        """For a data loader's worker, which has no terminal."""
        return {**self.__dict__, "_tell": _say_nothing}

    def __call__(self) -> Iterator[Row]:
        kind, length = kind_of(self._plan), self._plan.training.max_length
        told: set[str] = set()
        for number in itertools.count():
            rows = self._read_aloud(Tally(self._plan.dataset.source.uri), told)
            for row in _shuffle(rows, random.Random(f"{self._plan.training.seed}/{number}")):
                yield kind.cut({name: row[name] for name in kind.columns}, length)

    def _read_aloud(self, tally: Tally, told: set[str]) -> Iterator[Row]:
        """One pass, telling the first row of each fate: how many there are is known too late."""
        for row in itertools.chain(self.read(tally), [None]):
            for fate in tally.fates.keys() - told:
                told.add(fate)
                self._tell("warning", f"{tally.uri}: {fate}, from {tally.examples[fate][0]} on")
            if row is not None:
                yield row

    def read(self, tally: Tally) -> Iterator[Row]:
        """The rows of one pass in full length, with the columns of ``ingest``. Raises: InvalidInputError when there is none."""
        dataset, length = self._plan.dataset, self._plan.training.max_length
        origin = Origin(dataset.source, dataset.split, dataset.format, dataset.max_samples)
        fitting = 0
        for row in encode_rows(self._plan, origin, self._encoder, Deduplicator(dataset.cleaning), tally):
            if tally.fits(row, length):
                fitting += 1
                yield row
        if not fitting:
            raise InvalidInputError(
                f"dataset {tally.uri}: none of {tally.read} rows is left to train: {dict(tally.fates)}; raise "
                f"training.maxLength {length}, or relax dataset.cleaning"
            )


def _shuffle(rows: Iterator[Row], generator: random.Random) -> Iterator[Row]:
    """Each row once, drawn from as many as may wait."""
    held: list[Row] = []
    for row in rows:
        held.append(row)
        if len(held) > _SHUFFLED:
            index = generator.randrange(len(held))
            held[index], held[-1] = held[-1], held[index]
            yield held.pop()
    generator.shuffle(held)
    yield from held


def stream_rows(plan: TrainingPlan, encoder: Encoder, tell: Callable[[str, str], None]) -> Any:
    """datasets.IterableDataset without an end, in an order by the seed."""
    from datasets import Features, IterableDataset, List, Value

    features = Features({name: List(Value("int32")) for name in kind_of(plan).columns})
    stream = RowStream(plan, encoder, tell)
    return IterableDataset.from_generator(_call, features=features, gen_kwargs={"stream": stream})


def _say_nothing(event: str, message: str) -> None:
    """The main process says it."""


def _call(stream: RowStream) -> Iterator[Row]:
    return stream()


def read_head(plan: TrainingPlan, encoder: Encoder, count: int) -> list[Row]:
    """The first rows of the stream, in full length: what they show of the format and the template shows before training."""
    return list(itertools.islice(RowStream(plan, encoder, _say_nothing).read(Tally(plan.dataset.source.uri)), count))
