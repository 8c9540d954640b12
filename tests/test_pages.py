"""The checks of the documentation find what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import casam_commands, fault_of
from tests.pages import broken_links, reachable, read_page

GOOD = """\
# A page

See [the other](sub/other.md#two-words-and-more), [here](#a-page), [out](https://example.org/none) and
![a picture](picture.svg).

```sh
ls [not a link](gone.md)
```
"""
OTHER = "# Two words (`and` more)\n\n# Two *words*: & more\n\n## Twice\n\n## Twice\n\n[back](../page.md)\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of two good pages and a picture."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "page.md").write_text(GOOD)
    (tmp_path / "sub" / "other.md").write_text(OTHER)
    (tmp_path / "picture.svg").write_text("<svg/>")
    return tmp_path


def faults(root: Path, text: str) -> list[str]:
    """Broken links of page.md with this text."""
    path = root / "page.md"
    path.write_text(text)
    return broken_links({path: read_page(path)}, root)


def test_anchors_are_those_of_github(root: Path) -> None:
    anchors = read_page(root / "sub" / "other.md").anchors
    assert anchors == {"two-words-and-more", "two-words--more", "twice", "twice-1"}


def test_good_links_pass(root: Path) -> None:
    assert faults(root, GOOD) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# A\n\n[x](gone.md)", "page.md:3: gone.md: no such file"),
        ("[x](sub/other.md#three)", "page.md:1: sub/other.md#three: no such heading"),
        ("| a |\n| --- |\n| [x](#b) |", "page.md:3: #b: no such heading"),
        ("![x](gone.svg)", "page.md:1: gone.svg: no such file"),
        ('<picture><img src="gone.svg"></picture>', "page.md:1: gone.svg: no such file"),
        ("[x][y]\n\n[y]: gone.md", "page.md:1: gone.md: no such file"),
    ],
)
def test_a_link_that_leads_nowhere_is_named(root: Path, text: str, why: str) -> None:
    assert faults(root, text) == [why]


def test_a_link_out_of_the_repository_is_named(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    (tmp_path / "elsewhere.md").write_text("# There")
    assert faults(root, "[x](../elsewhere.md)") == ["page.md:1: ../elsewhere.md: outside of the repository"]


def test_pages_that_no_link_leads_to(root: Path) -> None:
    (root / "alone.md").write_text("[there](page.md)")
    assert reachable(root / "page.md") == {root / "page.md", root / "sub" / "other.md"}


def test_marks_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    fences = [
        "```sh\na\n```",
        "<!-- run -->\n```sh\nb\n```",
        "<!-- run slow -->\n```sh\nc\n```",
        "```\nd\n```",
    ]
    path.write_text("\n\n".join(fences))
    assert [(block.text, block.run) for block in read_page(path).blocks] == [
        ("a\n", None),
        ("b\n", "fast"),
        ("c\n", "slow"),
    ]


@pytest.mark.parametrize("text", ["<!-- run -->\ntext\n\n```sh\na\n```", "<!-- run -->\n```python\na\n```"])
def test_a_mark_over_nothing_that_can_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match="nothing that can run"):
        read_page(tmp_path / "page.md")


def test_commands_are_found_where_a_shell_would_find_them() -> None:
    text = (
        "A=1 .venv/bin/casam run x --set a='b c' \\\n  --out y > z   # casam gone\n"
        "cat <<'END'\ncasam inside\nEND\n. activate && casam init mine.toml | casam doctor\necho casam\n"
    )
    assert list(casam_commands(text)) == [
        ["run", "x", "--set", "a=b c", "--out", "y"],
        ["init", "mine.toml"],
        ["doctor"],
    ]


@pytest.mark.parametrize(
    "line",
    [
        "casam run quickstart --engine inprocess --set a=1 --set b=2",
        "casam study STUDY --jobs N",
        "casam bank import-official DIR --out BANK [--order A,B] [--sampled]",
        "casam provision ... --renew-server",
        "casam scenarios",
        "casam --version",
    ],
)
def test_commands_that_casam_knows(line: str) -> None:
    (arguments,) = casam_commands(line)
    assert fault_of(arguments) is None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("casam runn quickstart", "no command 'runn' in casam"),
        ("casam data chek DIR", "no command 'chek' in casam data"),
        ("casam run quickstart --sett a=1", "No such option '--sett'"),
        ("casam run quickstart --set", "requires an argument"),
        ("casam run one two", "unexpected two"),
        ("casam run x --engine warp", "'warp' is not one of"),
        ("casam study x --jobs many", "'many' is not a valid integer"),
        ("casam bank show", "bank is missing"),
        ("casam provision", "institutions is missing"),
        ("casam bank", "needs a command"),
    ],
)
def test_commands_that_it_does_not_know(line: str, why: str) -> None:
    (arguments,) = casam_commands(line)
    assert why in str(fault_of(arguments))
