"""`casam site`: what a privacy officer reads before a yes, and what the commands write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casam_core.config.policy import Policy
from casam_core.config.scenario import Scenario
from casam_core.config.site_file import SiteFile, read_site_file, simulated_task
from casam_core.model.forms import build_layer
from casam_core.protocol.messages import REPLIES, CalibrateReply
from client.node.approvals import approve, keep_pending
from scenarios.deploy.place import Place
from scenarios.inspection.plain_page import as_markdown
from scenarios.inspection.site_review import example, page_of
from tests.casam_command import Casam
from tests.conftest import tiny_table

ROOT = Path(__file__).resolve().parents[3]


def place(folder: Path, scenario: Scenario, **policy: object) -> Place:
    (site,) = (spec for spec in scenario.institutions if spec.name == "north")
    tasks = {task: simulated_task(spec, 0) for task, spec in site.data.items()}
    return Place("north", SiteFile(tasks=tasks), Policy.model_validate(policy), folder, None)


def test_the_example_in_the_docs_is_what_the_command_makes() -> None:
    made = (ROOT / "docs" / "site-review.md").read_text()
    assert made == example(), "run: python -m scenarios.inspection.site_review"


def test_every_kind_of_answer_and_each_of_its_fields_is_named(
    tmp_path: Path, tiny_scenario: Scenario
) -> None:
    text = as_markdown(page_of(place(tmp_path, tiny_scenario), tiny_scenario))
    for reply in set(REPLIES.values()) - {CalibrateReply}:  # its only holder sends no scores
        for field in reply.parts():
            assert field.replace("_", " ") in text
    (line,) = [line for line in text.splitlines() if line.startswith("| trained layer")]
    layer = build_layer(tiny_scenario.alignment, 32, 0, None)
    weights = 32 * sum(value.numel() for value in layer.state_dict().values())
    bits = int(line.split(" | ")[3].replace(",", ""))
    assert 0 < bits - weights < 64, "32-bit weights, a count of images, and one flag"


def test_what_the_policy_refuses_is_said_to_stay(tmp_path: Path, tiny_scenario: Scenario) -> None:
    closed = place(tmp_path, tiny_scenario, adapter={"share": "never"}, metrics="never")
    text = as_markdown(page_of(closed, tiny_scenario))
    assert "| never | 0 | 0 | nobody |" in text
    assert "By this site's policy also: layers, test scores." in text


def test_an_order_of_its_own_is_told(tmp_path: Path, tiny_scenario: Scenario) -> None:
    table = tiny_table(method="sequential")
    table["institutions"][0]["stream"] = ["polyp"]
    own = Scenario.model_validate(table)
    assert "in an order of its own: polyp." in as_markdown(page_of(place(tmp_path, own), own))
    assert "order of its own" not in as_markdown(page_of(place(tmp_path, tiny_scenario), tiny_scenario))


def test_members_of_a_relay_read_that_sums_go_on_to_another_server(
    tmp_path: Path, tiny_scenario: Scenario
) -> None:
    relayed = Scenario.model_validate(tiny_table(relayed=True))
    assert "The server is a relay" in as_markdown(page_of(place(tmp_path, relayed), relayed))
    assert "is a relay" not in as_markdown(page_of(place(tmp_path, tiny_scenario), tiny_scenario))


def test_a_relay_itself_reads_a_page_without_images_of_its_own(
    tmp_path: Path, tiny_scenario: Scenario
) -> None:
    relay = Place("north", SiteFile(relay="/srv/relay"), Policy(), tmp_path, None)
    text = as_markdown(page_of(relay, tiny_scenario))
    assert "images for training" not in text
    assert "a relay, which stands for its members: polyp" in text


def test_changes_since_the_last_approval(tmp_path: Path, tiny_scenario: Scenario) -> None:
    here = place(tmp_path, tiny_scenario)
    approve(tiny_scenario, "north", here.site, tmp_path, "person")
    longer = Scenario.model_validate(tiny_table(training={"epochs": 7}, seed=3))
    text = as_markdown(page_of(here, longer))
    assert "- training.epochs: 1 -> 7" in text
    assert "- seed: 0 -> 3" in text
    assert "not approved" in text
    assert "approved on 20" in as_markdown(page_of(here, tiny_scenario))


def test_texts_of_others_bring_no_markup_and_no_control_characters(tmp_path: Path) -> None:
    wicked = Scenario.model_validate(
        tiny_table(description="\x1b[2Jfine\n\n# approved <script>alert(1)</script> | `x` ‮")
    )
    text = as_markdown(page_of(place(tmp_path, wicked), wicked))
    assert "\x1b" not in text
    assert "‮" not in text
    assert "<script" not in text
    assert "\n# approved" not in text


def dataset(folder: Path, names: list[str]) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for name in names:
            Image.fromarray(np.eye(64, dtype=np.uint8)).save(folder / part / f"{name}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    dataset(tmp_path / "data" / "Polyp 2024", [f"p{i // 3}_{i % 3}" for i in range(60)])
    dataset(tmp_path / "data" / "knee", [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(40)])
    return tmp_path / "data"


def test_init_writes_a_file_and_says_how_to_check_it(data: Path, tmp_path: Path, casam: Casam) -> None:
    out = tmp_path / "images.toml"
    said = casam("site", "init", data, "--out", out)
    assert said.status == 0, said.refusal
    assert "60 images without a group" in said.out
    assert "group_pattern = '^(.+?)[-_ .]\\d+$'" in said.out
    tasks = read_site_file(out).tasks
    assert {task: spec.path for task, spec in tasks.items()} == {"polyp_2024": "Polyp 2024", "knee": "knee"}
    assert tasks["knee"].minimum.test == 5
    assert "exists already" in casam("site", "init", data, "--out", out).refusal
    command = said.out.split("then run: casam ")[1].split()
    checked = casam(*command, "--home", tmp_path / "home")
    assert "here: knee" in checked.out
    assert (tmp_path / "home" / "split.key").exists()
    assert "--home" not in checked.out
    assert "without --home the parts below are not the node's" in casam(*command).out


def test_check_names_a_task_below_its_minimum(data: Path, tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "site.toml").write_text('[tasks.knee]\npath = "knee"\nminimum.test = 39\n')
    checked = casam(
        "data", "check", "--site", tmp_path / "site.toml", "--data-root", data, "--home", tmp_path / "home"
    )
    assert checked.status == 1
    assert "minimum.test: expected 39 images or more" in checked.out


def test_review_approve_withdraw(data: Path, tmp_path: Path, casam: Casam) -> None:
    (tmp_path / "site.toml").write_text('[tasks.knee]\npath = "knee"\n')
    (tmp_path / "policy.toml").touch()
    node = tmp_path / "node.toml"
    node.write_text(
        f'institution = "north"\nsuperlink = "x:1"\nauthority = "ca.crt"\nkey = "k"\nbundle = "{"0" * 64}"\n'
        'register = "r"\nsigning_key = "s"\npolicy = "policy.toml"\nsite = "site.toml"\n'
        f'home = "home"\ndata_root = "{data}"\n'
    )
    table = tiny_table(stream=["knee"], institutions=[{"name": "north", "data": {"knee": {}}}])
    scenario = Scenario.model_validate(table)
    digest = scenario.digest()
    (tmp_path / "home").mkdir()
    assert "asks nothing of this site" in casam("site", "review", "quickstart", "--node", node).refusal
    assert "no scenario waits, and none was approved" in casam("site", "review", "--node", node).out
    assert keep_pending(digest, scenario.canonical_json(), tmp_path / "home")
    assert f"waits     {digest[:12]}" in casam("site", "review", "--node", node).out
    page = casam("site", "review", digest[:8], "--node", node, "--markdown", tmp_path / "page.md")
    assert "What north is asked by `tiny`" in page.out
    assert (tmp_path / "page.md").read_text() in page.out
    assert f"north approves tiny {digest}" in casam("site", "approve", digest[:8], "--node", node).out
    assert f"approved  {digest[:12]}" in casam("site", "review", "--node", node).out
    assert "no longer approves" in casam("site", "withdraw", digest, "--node", node).out
    assert f"withdrawn {digest[:12]}" in casam("site", "review", "--node", node).out
