"""What was computed survives a crash, except for a torn last line."""

from __future__ import annotations

from pathlib import Path

from client.evaluation.results import SPARE, Results


def test_a_value_is_found_again_after_a_restart(tmp_path: Path) -> None:
    Results(tmp_path / "r.jsonl").put("image", "entry", {"iou": 0.25})
    assert Results(tmp_path / "r.jsonl").get("image", "entry") == {"iou": 0.25}
    assert Results(tmp_path / "r.jsonl").get("image", "other") is None


def test_a_line_torn_by_a_crash_is_dropped_and_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results = Results(path)
    results.put("a", "e", 1)
    results.put("b", "e", 2)
    path.write_bytes(path.read_bytes()[:-3])
    torn = Results(path)
    assert (torn.get("a", "e"), torn.get("b", "e")) == (1, None)
    torn.put("b", "e", 2)
    again = Results(path)
    assert (again.get("a", "e"), again.get("b", "e")) == (1, 2)


def test_from_a_damaged_line_on_all_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results = Results(path)
    for name in "abc":
        results.put(name, "e", 1)
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\xff" + second[1:] + third)
    damaged = Results(path)
    assert [damaged.get(name, "e") for name in "abc"] == [1, None, None]


def test_what_was_computed_with_a_deleted_entry_is_deleted_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results = Results(path)
    results.put("a", "gone", 1)
    results.put("a", "stays", 2)
    results.forget(["gone"])
    results.put("b", "stays", 3)
    assert path.read_text().splitlines() == ['["a", "stays", 2]', '["b", "stays", 3]']
    assert (results.get("a", "gone"), Results(path).get("b", "stays")) == (None, 3)


def test_a_file_of_replaced_lines_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results = Results(path)
    for stage in range(5 * SPARE):
        results.put("a", "nearest", stage)
    assert len(path.read_bytes().splitlines()) <= SPARE + 2
    assert Results(path).get("a", "nearest") == 5 * SPARE - 1
