"""Texts come back as they were; what is no compressed text, or too long a one, is refused."""

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casam_core.protocol import compressed_text
from casam_core.protocol.compressed_text import compress_text, expand_text


@given(st.text(st.characters(codec="utf-8")))
def test_a_text_comes_back(text: str) -> None:
    assert expand_text(compress_text(text)) == text


def test_nothing_stays_nothing() -> None:
    assert compress_text("") == expand_text("") == ""


def test_what_repeats_itself_becomes_short() -> None:
    assert len(compress_text("institution " * 1000)) < 200


def test_a_text_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed_text, "LARGEST", 1000)
    assert expand_text(compress_text("a" * 999)) == "a" * 999
    with pytest.raises(ValueError, match="at most 1000 bytes"):
        expand_text(compress_text("b" * 1001))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a scenario of an older version"}',
        base64.b64encode(b"not compressed").decode(),
        base64.b64encode(zlib.compress(b"cut off")[:-3]).decode(),
        base64.b64encode(zlib.compress(b"\xff\xfe")).decode(),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (three libraries' words)
        expand_text(text)
