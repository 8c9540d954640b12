"""The house stays one that fits in one head (tests/house.py measures it)."""

from __future__ import annotations

from tests import house


def test_no_folder_shows_more_than_twelve_entries() -> None:
    assert {folder: count for folder, count in house.entries().items() if count > 12} == {}


def test_no_file_name_stands_for_two_things() -> None:
    assert house.names_of_several_files() == []


def test_no_class_of_trusted_code_has_the_name_of_another() -> None:
    assert house.names_of_several_things(*house.TRUSTED) == {}


def test_no_function_has_more_than_fourteen_branches() -> None:
    assert [found for found in house.complexities() if found[0] > 15] == []


def test_who_raises_an_error_says_so() -> None:
    assert house.errors_without_a_word() == []


def test_a_privacy_officer_reads_the_release_path_in_one_sitting() -> None:
    assert house.lines(house.sources(house.RELEASE_PATH)) <= 1150
