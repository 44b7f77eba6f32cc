"""What was decoded is not decoded again, and is never believed against the evidence."""

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import InProcess, Llmbench
from hypothesis import given, settings
from hypothesis import strategies as st
from test_requests import ROWS, broken, traces_of_two_cells
from test_summary import facts_of

from llmbench import columns, evidence
from llmbench.config import Sweep
from llmbench.evidence import Part, requests_by_cell
from llmbench.measure.requests import Ragged, Requests
from llmbench.records import Connect, Target
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer

Truth = Callable[..., TruthServer]


@pytest.fixture(autouse=True)
def nothing_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LONG_BYTES", 0)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The cells whose evidence was decoded since the last look."""
    seen: list[int] = []
    real = evidence._whole

    def whole(parts: Iterator[Part]) -> Part:
        found = real(parts)
        seen.append(len(found.requests))
        return found

    monkeypatch.setattr(evidence, "_whole", whole)
    return seen


def run_of_two_cells(folder: Path) -> RunDirectory:
    """Four requests of cell 0, then two of cell 2."""
    target = Target(spec="http://h", name="h", url="http://h/v1")
    directory = RunDirectory.create(Sweep(out=str(folder)), [target], {})
    for number in (0, 2):
        its = [each for each in traces_of_two_cells() if each.cell == number]
        directory.add_cell(facts_of(cell=number), its)
    return directory


def tables(directory: RunDirectory) -> dict[int, Requests]:
    return dict(requests_by_cell(directory))


def same(one: Requests, other: Requests) -> None:
    for name, column in one.columns.items():
        its = getattr(other, name)
        if isinstance(column, Ragged):
            np.testing.assert_array_equal(column.values, its.values)
            np.testing.assert_array_equal(column.sizes, its.sizes)
            assert column.values.dtype == its.values.dtype
        elif column is None:
            assert its is None
        else:
            np.testing.assert_array_equal(column, its)
            assert column.dtype == its.dtype


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    directory = run_of_two_cells(tmp_path / "run")
    span = directory.add_cell(facts_of(cell=3), [broken(100, cell=3)])
    rows = [*ROWS, msgspec.structs.replace(ROWS[0], connect=Connect(1, 2, 3), finish="é\n")]
    table = Requests.of(rows)
    columns.keep(directory, 3, span, table)
    (kept,) = columns.kept(directory)
    assert (kept.cell, kept.span) == (3, span)
    same(kept.requests, table)


def test_the_second_report_decodes_nothing(tmp_path: Path, decodes: list[int]) -> None:
    directory = run_of_two_cells(tmp_path / "run")
    first, again = tables(directory), tables(directory)
    assert decodes == [4, 2]
    assert list(again) == list(first) == [0, 2]
    for number, table in first.items():
        same(table, again[number])


def test_only_what_is_not_kept_is_decoded(tmp_path: Path, decodes: list[int]) -> None:
    directory = run_of_two_cells(tmp_path / "run")
    first = tables(directory)
    directory.add_cell(facts_of(cell=3), [broken(100, cell=3), broken(300, cell=3)])
    (directory.path / "columns" / "0.npz").unlink()
    decodes.clear()
    again = tables(directory)
    assert decodes == [4, 2]  # cells 0 and 3, around cell 2
    assert list(again) == [0, 2, 3]
    same(again[0], first[0])
    same(again[2], first[2])


def changed_evidence(directory: RunDirectory) -> None:
    path = directory.requests_path
    path.write_bytes(path.read_bytes().replace(b'"end_ns":50', b'"end_ns":51', 1))


def changed_code(directory: RunDirectory) -> None:
    path = directory.path / "columns" / "0.npz"
    with np.load(path) as arrays:
        its = dict(arrays)
    key = its["key"].tobytes()
    code = msgspec.json.decode(key)["code"]
    its["key"] = np.frombuffer(key.replace(code.encode(), b"0" * len(code)), dtype=np.uint8)
    np.savez(path, **its)


def cut_off(directory: RunDirectory) -> None:
    path = directory.path / "columns" / "0.npz"
    path.write_bytes(path.read_bytes()[:-100])


def damaged(directory: RunDirectory) -> None:
    path = directory.path / "columns" / "0.npz"
    content = bytearray(path.read_bytes())
    content[content.index(b"\x93NUMPY", len(content) // 2)] ^= 255
    path.write_bytes(content)


def no_table(directory: RunDirectory) -> None:
    np.savez(directory.path / "columns" / "0.npz", other=np.arange(3))


def no_archive(directory: RunDirectory) -> None:
    with (directory.path / "columns" / "0.npz").open("wb") as file:
        np.save(file, np.arange(3))


def of_another_cell(directory: RunDirectory) -> None:
    folder = directory.path / "columns"
    shutil.copy(folder / "2.npz", folder / "0.npz")


def a_name_is_changed(directory: RunDirectory) -> None:
    path = directory.path / "columns" / "0.npz"
    path.write_bytes(path.read_bytes().replace(b"lag_ms.values", b"lag_mr.values"))


def an_unknown_member(directory: RunDirectory) -> None:
    with zipfile.ZipFile(directory.path / "columns" / "0.npz", "a") as archive:
        archive.writestr("key", b"{}")


def pickled(directory: RunDirectory) -> None:
    path = directory.path / "columns" / "0.npz"
    with np.load(path) as arrays:
        its = dict(arrays)
    np.savez(path, allow_pickle=True, **its | {"phase": np.array([print] * 4, dtype=object)})


def shifted(directory: RunDirectory) -> None:
    """Another line before it: the bytes are there, but elsewhere."""
    path = directory.requests_path
    first, *_ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + path.read_bytes())


@pytest.mark.parametrize(
    "harm",
    [
        *(changed_evidence, changed_code, cut_off, damaged, no_table, pickled, no_archive),
        *(of_another_cell, a_name_is_changed, an_unknown_member),
    ],
)
def test_the_evidence_is_believed(
    tmp_path: Path, decodes: list[int], harm: Callable[[RunDirectory], None]
) -> None:
    directory = run_of_two_cells(tmp_path / "run")
    tables(directory)
    harm(directory)
    bare = tmp_path / "bare"
    shutil.copytree(directory.path, bare)
    shutil.rmtree(bare / "columns")
    decodes.clear()
    found = tables(directory)
    assert decodes == [4]
    for number, table in tables(RunDirectory.open(bare)).items():
        same(found[number], table)


def test_evidence_that_was_added_to_a_cell_belongs_to_it(tmp_path: Path) -> None:
    directory = run_of_two_cells(tmp_path / "run")
    tables(directory)
    path = directory.requests_path
    *_, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(path.read_bytes() + last)
    assert {number: len(its) for number, its in tables(directory).items()} == {0: 4, 2: 3}
    assert {number: len(its) for number, its in tables(directory).items()} == {0: 4, 2: 3}


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_damage_is_believed(data: st.DataObject) -> None:
    """Some bytes of it changed: the same figures, from the evidence if need be."""
    with tempfile.TemporaryDirectory() as folder:
        directory = run_of_two_cells(Path(folder) / "run")
        first = tables(directory)
        path = directory.path / "columns" / "0.npz"
        content = bytearray(path.read_bytes())
        places = st.integers(0, len(content) - 1)
        for place in data.draw(st.lists(places, min_size=1, max_size=3)):
            content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        same(tables(directory)[0], first[0])


def test_evidence_that_has_moved_is_decoded(tmp_path: Path, decodes: list[int]) -> None:
    directory = run_of_two_cells(tmp_path / "run")
    tables(directory)
    shifted(directory)
    decodes.clear()
    assert {number: len(its) for number, its in tables(directory).items()} == {0: 5, 2: 2}
    assert decodes == [5, 2]


def test_a_copy_needs_no_decoding(tmp_path: Path, decodes: list[int]) -> None:
    directory = run_of_two_cells(tmp_path / "run")
    tables(directory)
    shutil.copytree(directory.path, tmp_path / "copy", copy_function=shutil.copy)  # new times
    decodes.clear()
    assert list(tables(RunDirectory.open(tmp_path / "copy"))) == [0, 2]
    assert decodes == []


def test_what_is_short_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LONG_BYTES", 1 << 20)
    directory = run_of_two_cells(tmp_path / "run")
    tables(directory)
    assert not (directory.path / "columns").exists()


def test_a_disk_that_takes_no_more_is_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    directory = run_of_two_cells(tmp_path / "run")
    assert list(tables(directory)) == [0, 2]
    assert list((directory.path / "columns").iterdir()) == []


def test_a_sweep_keeps_its_long_cells(
    truth: Truth, run_llmbench: Llmbench, in_process: InProcess, run_dir: Path
) -> None:
    server = truth(ttft_ms=1, itl_ms=0, output_tokens=400)
    done = run_llmbench(
        *("sweep", "--target", server.url, "--concurrency", 8, "--requests", 150),
        *("--output-tokens", 400, "--prompt-tokens", 32, "--no-calibrate", "--out", run_dir),
    )
    assert done.code in (0, 4), done.err
    assert [each.name for each in (run_dir / "columns").iterdir()] == ["0.npz"]
    first = in_process("report", run_dir, "--format", "json").out
    shutil.rmtree(run_dir / "columns")
    assert in_process("report", run_dir, "--format", "json").out == first
