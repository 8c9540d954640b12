"""The tests mirror the product: who knows where a module lies knows where its test lies.

Below `tests/<room>` three rules hold:

- every folder is a folder of the product, too;
- `test_X.py` lies in the folder of the room's module `X.py`, or in the room's package `X`, where the room has
  exactly one of that name; a name that no module has says what several modules do together;
- no two test files of the repository have one name, and no folder shows more than 14 entries.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.house import ROOMS, ROOT

TESTS = ROOT / "tests"
LARGEST = 14


def files_of(folder: Path) -> list[Path]:
    """Every file of tests below a folder, relative to `tests`."""
    return sorted(path.relative_to(TESTS) for path in folder.rglob("test_*.py"))


def folders() -> Iterator[Path]:
    """Every folder of tests of a room, relative to `tests`."""
    for room in ROOMS:
        for path in (TESTS / room, *(TESTS / room).rglob("*")):
            if path.is_dir() and path.name != "__pycache__":
                yield path.relative_to(TESTS)


def homes(room: str) -> dict[str, set[Path]]:
    """Where the test of a name may lie: by module, its folder; by package, the package itself."""
    found = defaultdict(set)
    for path in (ROOT / room).rglob("*.py"):
        inside = path.parent.relative_to(ROOT)
        found[inside.name if path.name == "__init__.py" else path.stem].add(inside)
    return found


def misplaced(room: str) -> dict[str, str]:
    """Test files that lie elsewhere than what they are named after, and where they belong."""
    known = homes(room)
    found = {}
    for path in files_of(TESTS / room):
        places = known.get(path.stem.removeprefix("test_"), set())
        if len(places) == 1 and path.parent not in places:
            found[path.as_posix()] = str(*places)
    return found


def test_every_folder_of_tests_is_a_folder_of_the_product() -> None:
    assert [str(folder) for folder in folders() if not (ROOT / folder).is_dir()] == []


def test_a_test_lies_where_its_module_lies() -> None:
    assert {path: place for room in ROOMS for path, place in misplaced(room).items()} == {}


def test_no_two_test_files_have_one_name() -> None:
    names = Counter(path.name for path in files_of(TESTS))
    assert [name for name, times in names.items() if times > 1] == []


def test_no_folder_of_tests_shows_more_than_fourteen_entries() -> None:
    shown = {
        folder.as_posix(): sum(not entry.name.startswith(("_", ".")) for entry in (TESTS / folder).iterdir())
        for folder in folders()
    }
    assert {folder: count for folder, count in shown.items() if count > LARGEST} == {}
