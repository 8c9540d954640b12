"""The server's memory of a run: it survives its file to the last bit, and damage is found."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casam_core.bank.bank import Bank
from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.errors import RunError
from casam_core.metrics.intervals import Estimate, Statistics
from casam_core.protocol.messages import Forecast, ForgetReply, Holding
from server.evaluation import StageScores
from server.federation.directory import Member
from server.learning import LearnedLayer
from server.run.run_folder import RunFolder
from server.run.state import FILE, decoded, encoded, restore, save
from server.stage import Learned, Stage, State
from server.unlearning import Held, Unlearned
from tests.conftest import tiny_table

SCORES = StageScores(
    figures={"iou": {"polyp": 0.1 + 0.2, "histology": None}},
    worst_iou={"polyp": 1 / 3},
    routes={"polyp": {"identity": 4}},
    decodes=4,
    margins={"polyp": np.arange(5, dtype=np.int64)},
    statistics={
        "north": {"polyp": Statistics(4, Estimate(0.5, 0.1, 0.4, 0.6), Estimate(0.1, None, None, None))}
    },
)  # fmt: skip
LEFT = Unlearned(
    "north", 2, "a" * 64, "b" * 64, {"polyp": "c" * 64}, {"histology": ("d" * 64, "e" * 64)},
    {"histology": ("west",)}, {"south": ForgetReply("0" * 128)},
)  # fmt: skip
STAGE = Stage(
    number=1, task="polyp", holders=("north",), parameters=96, scores=SCORES, seconds={"align": 1.5},
    unlearned=(LEFT,),
)  # fmt: skip
STATE = State(
    zero_shot=SCORES,
    stages=(STAGE,),
    bank=Bank(Path("bank"), {}),
    counters={"up": {"north": 3}, "down": {}, "releases": {"north": 1}, "refusals": {}, "epsilon": {}},
    layer=LearnedLayer({"w": np.array([[0.1, -0.0]], np.float32)}, ("north",), 7, None, False),
    held=(Held("polyp", "c" * 64, 1, ("north", "west"), True),),
    members={
        "north": Member(7, {"polyp": Holding(4, 2, 3)}, Policy(max_rounds=2), {"polyp": Forecast(1, 2, 0.5)})
    },
    seconds=12.5,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    Bank.open(tmp_path / "run" / "bank", create=True)
    return RunFolder(tmp_path / "run")


def content(state: State) -> Any:
    """All of a state but the bank, which has files of its own."""
    return encoded({name: value for name, value in vars(state).items() if name != "bank"})


def saved(folder: RunFolder) -> State:
    """Before the first stage, and after it."""
    before = save(folder, replace(STATE, stages=()))
    return save(folder, replace(STATE, files=before.files))


def test_a_state_survives_its_files_to_the_last_bit(folder: RunFolder) -> None:
    want = saved(folder)
    again = restore(folder)
    assert again is not None
    assert content(again) == content(want)
    assert again.bank.folder == folder.path / "bank"
    assert len(again.files) == 2
    assert again.stages[0].scores.figures["iou"]["polyp"] == 0.1 + 0.2
    assert again.stages[0].unlearned[0].retrained["histology"] == ("d" * 64, "e" * 64)
    assert again.members == STATE.members
    assert again.layer is not None
    assert again.layer.weights["w"].tobytes() == np.array([[0.1, -0.0]], np.float32).tobytes()
    assert isinstance(again.held[0].holders, tuple)


def test_a_learned_stage_survives_without_a_file_of_its_own(folder: RunFolder) -> None:
    before = saved(folder)
    stage = before.stages[0]
    known = {name: value for name, value in vars(stage).items() if name != "scores"}
    learned = Learned(**{**known, "number": 2, "candidates": ("histology",)})
    want = save(folder, replace(before, learned=learned))
    again = restore(folder)
    assert again is not None
    assert content(again) == content(want)
    assert again.learned == learned
    assert again.files == before.files
    assert save(folder, replace(again, learned=None, stages=(*again.stages, stage))).files[:2] == before.files


def test_without_a_finished_stage_there_is_none(folder: RunFolder) -> None:
    assert restore(folder) is None


@pytest.mark.parametrize("value", [(), (1, "a"), {"x": [1, (2,)]}, None, True, 0.1, np.zeros((0, 3))])
def test_values_keep_their_types(value: object) -> None:
    again = decoded(json.loads(json.dumps(encoded(value))))
    assert type(again) is type(value)
    assert encoded(again) == encoded(value)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stages/0000.json", "0.30000000000000004", "0.9"),
        ("stages/0001.json", "0.30000000000000004", "0.9"),
        (FILE, "12.5", "1.25"),
    ],
)
def test_an_altered_state_is_not_gone_on_from(folder: RunFolder, name: str, old: str, new: str) -> None:
    saved(folder)
    path = folder.path / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(RunError, match=f"{name} was altered; the run cannot be resumed"):
        restore(folder)


def test_a_stage_writes_what_it_added_and_leaves_the_others_alone(folder: RunFolder) -> None:
    state = saved(folder)
    before = {path.name: path.stat().st_mtime_ns for path in (folder.path / "stages").iterdir()}
    save(folder, replace(state, stages=(*state.stages, *state.stages)))
    after = {path.name: path.stat().st_mtime_ns for path in (folder.path / "stages").iterdir()}
    assert before.keys() == {"0000.json", "0001.json"}
    assert after.keys() - before.keys() == {"0002.json"}
    assert before.items() <= after.items()


def test_a_stage_that_no_state_names_yet_is_done_again(folder: RunFolder) -> None:
    """A run killed between the two files."""
    want = saved(folder)
    (folder.path / "stages" / "0002.json").write_text("anything")
    again = restore(folder)
    assert again is not None
    assert content(again) == content(want)


def test_a_stage_whose_file_is_gone_is_named(folder: RunFolder) -> None:
    saved(folder)
    (folder.path / "stages" / "0001.json").unlink()
    with pytest.raises(RunError, match=r"stages/0001\.json is damaged"):
        restore(folder)


def test_zeros_take_no_room() -> None:
    assert len(json.dumps(encoded(np.zeros(512, np.int64)))) < 150


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 1, "sha256": "x", "state": 3}', "not json"])
def test_a_damaged_state_is_one_line(folder: RunFolder, text: str) -> None:
    (folder.path / FILE).write_text(text)
    with pytest.raises(RunError, match=r"damaged|altered"):
        restore(folder)


def test_another_versions_state_is_named(folder: RunFolder) -> None:
    (folder.path / FILE).write_text('{"schema": 9, "sha256": "", "state": {}}')
    with pytest.raises(RunError, match="has schema 9, this version reads 4"):
        restore(folder)


# --- The run folder ------------------------------------------------------------------------------------


def begun(path: Path) -> Scenario:
    """A folder whose run was interrupted."""
    scenario = Scenario.model_validate(tiny_table())
    first = RunFolder(path)
    first.write_json("scenario.json", scenario.model_dump(mode="json"))
    first.event("start")
    first.close()
    return scenario


def test_two_servers_cannot_write_to_one_folder(tmp_path: Path) -> None:
    scenario = begun(tmp_path / "run")
    one = RunFolder(tmp_path / "run", scenario)
    with pytest.raises(RunError, match="is written to by another server"):
        RunFolder(tmp_path / "run", scenario)
    one.close()
    RunFolder(tmp_path / "run", scenario).close()


@pytest.mark.parametrize(("resumed", "advice"), [(False, "choose another --out"), (True, "then resume")])
def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool, advice: str
) -> None:
    def refuses(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    scenario = begun(tmp_path / "run") if resumed else None
    monkeypatch.setattr("server.run.run_folder.lock_file", refuses)
    with pytest.raises(RunError, match=f"cannot be written: Permission denied; .*{advice}"):
        RunFolder(tmp_path / "run", scenario)


def test_a_new_run_does_not_go_on_by_itself(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run"):
        RunFolder(tmp_path / "run")


def test_only_the_same_scenario_goes_on(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    with pytest.raises(RunError, match="holds a run of scenario"):
        RunFolder(tmp_path / "run", Scenario.model_validate(tiny_table(seed=1)))


def test_a_finished_run_is_not_resumed(tmp_path: Path) -> None:
    scenario = begun(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(RunError, match="the run is finished"):
        RunFolder(tmp_path / "run", scenario)


def test_a_torn_event_is_cut(tmp_path: Path) -> None:
    scenario = begun(tmp_path / "run")
    events = tmp_path / "run" / "events.jsonl"
    events.write_text(events.read_text() + '{"time": 17, "ev')
    folder = RunFolder(tmp_path / "run", scenario)
    folder.event("resumed")
    assert [json.loads(line)["event"] for line in events.read_text().splitlines()] == ["start", "resumed"]
