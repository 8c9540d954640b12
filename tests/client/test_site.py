"""Where an institution's things lie is the node's to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from casam_core.config.scenario import Scenario
from casam_core.config.toml import read_policy
from casam_core.errors import DataError, PolicyError, RunError
from client.client_app import forget_institutions, institution_at
from client.site import hosted_sites
from tests.conftest import phantom, tiny_table

SETTINGS = {"out": "/runs", "data-root": "/data"}


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_any_number_of_nodes_hosts_every_institution_once(tiny_scenario: Scenario, nodes: int) -> None:
    hosted = [
        site.institution
        for i in range(nodes)
        for site in hosted_sites(tiny_scenario, "run", {"partition-id": i, "num-partitions": nodes}, SETTINGS)
    ]
    assert sorted(hosted) == ["north", "south", "west"]


@pytest.fixture
def closed(tmp_path: Path) -> dict[str, str]:
    """A site's own files, as its node names them."""
    (tmp_path / "policy.toml").write_text('adapter.share = "never"\n')
    (tmp_path / "site.toml").write_text('[tasks.histology]\npath = "slides"\nlimit.test = 7\n')
    return {
        "policy": str(tmp_path / "policy.toml"),
        "site": str(tmp_path / "site.toml"),
        "home": str(tmp_path / "home"),
    }


def test_in_deployment_the_policy_is_the_sites_own_file_whatever_the_scenario_says(
    closed: dict[str, str],
) -> None:
    table = tiny_table()
    table["institutions"][2]["policy"] = {"adapter": {"share": "yes"}, "keep_samples": True}
    scenario = Scenario.model_validate(table)
    (site,) = hosted_sites(scenario, "run", {"institution": "west", **closed}, SETTINGS)
    assert (site.policy.adapter.share, site.policy.keep_samples) == ("never", False)


def test_in_deployment_the_description_is_the_sites_own_whatever_the_scenario_says(
    closed: dict[str, str],
) -> None:
    table = tiny_table()
    table["institutions"][2]["data"] = {"histology": {"path": "../payroll", "group_pattern": "(a+)+$"}}
    scenario = Scenario.model_validate(table)
    (site,) = hosted_sites(scenario, "run", {"institution": "west", **closed}, SETTINGS)
    held = site.localised(scenario).institution("west").data["histology"]
    assert (held.path, held.group_pattern, held.limit.test) == ("slides", None, 7)
    (Path(closed["site"])).write_text("[tasks.knee]\npath = 'knee'\n")
    with pytest.raises(DataError, match=r"expected \[tasks.histology\]"):
        hosted_sites(scenario, "run", {"institution": "west", **closed}, SETTINGS)


def test_in_deployment_a_node_without_a_site_file_takes_no_part(
    tiny_scenario: Scenario, closed: dict[str, str]
) -> None:
    del closed["site"]
    with pytest.raises(DataError, match="this node has no site file; write one"):
        hosted_sites(tiny_scenario, "run", {"institution": "west", **closed}, SETTINGS)


def test_in_a_simulation_the_scenario_stands_in_the_site_files_place(tiny_scenario: Scenario) -> None:
    node = {"partition-id": 2, "num-partitions": 3}
    (site,) = hosted_sites(tiny_scenario, "run", node, SETTINGS)
    assert (site.tasks["histology"].images, site.tasks["histology"].minimum.test) == (12, 1)
    table = tiny_table()
    table["institutions"][2]["data"] = {"histology": {}}
    with pytest.raises(DataError, match="found an empty table"):
        hosted_sites(Scenario.model_validate(table), "run", node, SETTINGS)


def test_in_deployment_a_node_without_a_policy_takes_no_part(tiny_scenario: Scenario) -> None:
    with pytest.raises(PolicyError, match="this node has no policy; write one"):
        hosted_sites(tiny_scenario, "run", {"institution": "west"}, SETTINGS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('adapter.share = "maybe"', "adapter.share: input should be 'yes' or 'never', found 'maybe'"),
        ("epsilom = 3", "unknown key 'epsilom'"),
        ("joins_at = 3\nleaves_at = 2", r"leaves_at must be above joins_at \(3\), found 2"),
        ("= 3", "not valid TOML"),
    ],
)
def test_a_faulty_policy_names_the_key_and_what_was_found(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(PolicyError, match=words):
        read_policy(tmp_path / "policy.toml")


def test_in_deployment_the_nodes_own_folders_win_over_the_runs(
    tiny_scenario: Scenario, closed: dict[str, str]
) -> None:
    node = {
        "institution": "west",
        "data-root": "/mnt/west",
        **closed,
        "partition-id": 0,
    }
    (site,) = hosted_sites(tiny_scenario, "run", node, SETTINGS)
    assert site.institution == "west"
    assert site.data_root == Path("/mnt/west")
    home = Path(closed["home"])
    assert site.store == home / "embeddings"
    assert site.private == home / "runs" / f"run-{tiny_scenario.digest()[:12]}"
    assert site.split_key == (home / "split.key").read_bytes()


def test_checkpoint_and_device_are_the_sites_and_the_checkpoints_place_is_never_sent(
    tiny_scenario: Scenario, closed: dict[str, str]
) -> None:
    asked = tiny_scenario.backbone.model_copy(update={"checkpoint": "/home/author/sam.pth"})
    scenario = tiny_scenario.model_copy(update={"backbone": asked})
    assert "/home/author" not in scenario.canonical_json()
    assert scenario.digest() == tiny_scenario.digest()
    own = {"data-root": "/mnt", "checkpoint": "/opt/sam.pth", "device": "cpu", **closed}
    node = {"institution": "west", **own}
    (site,) = hosted_sites(scenario, "run", node, SETTINGS)
    assert site.localised(scenario).backbone.checkpoint == "/opt/sam.pth"
    assert site.localised(scenario).compute.device == "cpu"


def test_a_node_of_an_institution_that_does_not_take_part_answers_for_nobody(
    tiny_scenario: Scenario,
) -> None:
    assert hosted_sites(tiny_scenario, "run", {"institution": "east"}, SETTINGS) == []


def test_institutions_of_a_simulation_share_no_folder(tiny_scenario: Scenario, own_home: Path) -> None:
    sites = hosted_sites(tiny_scenario, "run", {"partition-id": 0, "num-partitions": 1}, SETTINGS)
    assert len({site.store for site in sites}) == 3
    assert len({site.private for site in sites}) == 3
    assert all(own_home in site.store.parents for site in sites)


@pytest.mark.parametrize("run", ["", "../elsewhere", "/etc", "a/b", ".hidden", "a\n"])
def test_a_run_name_that_is_no_folder_name_is_refused(tiny_scenario: Scenario, run: str) -> None:
    with pytest.raises(RunError, match="run name"):
        hosted_sites(tiny_scenario, run, {"institution": "west"}, SETTINGS)


def test_a_process_that_hosts_many_opens_each_institution_once(tmp_path: Path) -> None:
    """In a simulation of a hundred, every worker sees all of them in turn, message after message."""
    data = {"polyp": phantom("polyp", 8)}
    names = [f"site-{i}" for i in range(100)]
    table = tiny_table(stream=["polyp"], institutions=[{"name": name, "data": data} for name in names])
    scenario = Scenario.model_validate(table)
    node = {"partition-id": 0, "num-partitions": 1}
    sites = hosted_sites(scenario, "run", node, {"out": str(tmp_path)})
    text = scenario.canonical_json()
    before, after = ([institution_at(site, text) for site in sites] for _ in range(2))
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert len(set(map(id, before))) == 100
    forget_institutions()
