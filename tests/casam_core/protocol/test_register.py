"""A register is read again when its file changed, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from casam_core.protocol.register import Keys, Register, RegisterError, read_register


def register_of(name: str) -> bytes:
    return Register(institutions={name: Keys(signing="a" * 64)}, server="b" * 64).text()


def test_a_register_that_did_not_change_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "register.json"
    file.write_bytes(register_of("north"))
    assert read_register(file) is read_register(file)


def test_a_register_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "register.json"
    file.write_bytes(register_of("north"))
    before = read_register(file)
    changed = tmp_path / "changed.json"  # another file in its place: same length, another inode
    changed.write_bytes(register_of("south"))
    changed.rename(file)
    assert [*before.institutions, *read_register(file).institutions] == ["north", "south"]


def test_a_register_that_is_gone_or_damaged_is_an_error_of_one_line(tmp_path: Path) -> None:
    file = tmp_path / "register.json"
    file.write_bytes(register_of("north"))
    read_register(file)
    file.write_bytes(b"{}")
    with pytest.raises(RegisterError, match=r"register\.json.*found no such file or another content"):
        read_register(file)
    file.unlink()
    with pytest.raises(RegisterError, match="ask the operator"):
        read_register(file)
