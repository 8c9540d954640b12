"""A server that lies to the members of a secure sum: whatever it tries, nobody unmasks for it."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, RecordDict

from casam_core.config.policy import Policy
from casam_core.config.site_file import TaskDescription
from casam_core.errors import CasamError, PolicyError
from casam_core.protocol.messages import RouterReply, RouterRequest
from casam_core.protocol.outcomes import Outcome, RefusalError
from casam_core.protocol.payload import Job, Payload
from casam_core.protocol.register import Keys, public_hex, read_register, signature_of
from casam_core.protocol.secure_sum import SIGNATURES, SIGNERS, STEPS_OF_A_SUM, SecureRequest
from casam_core.protocol.wire import packed, unpacked
from client.client_app import forget_institutions
from client.release import permission
from client.secagg.member import take_part
from client.secagg.remembered import check_members_before, remember
from tests.client.secagg.lying import Attempt, Server, with_protocol
from tests.refused import refused


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Five institutions, and a server that has not asked anything yet."""
    monkeypatch.setenv("CASAM_HOME", str(tmp_path / "home"))
    yield Server.of(tmp_path, "abcde")
    forget_institutions()


def again(table: Server, tmp_path: Path, run: str = "again") -> Server:
    """The same institutions in another run; their memory of sums continues."""
    later = Server.of(tmp_path, "abcde", run)
    for name, institution in later.institutions.items():
        institution.site = replace(institution.site, sums=table.institutions[name].site.sums)
    return later


def added(table: Server, name: str) -> list[str]:
    """The members of the sums that an institution remembers."""
    sums = table.institutions[name].site.sums
    lines = sums.read_text().splitlines() if sums.exists() else []
    return ["".join(json.loads(line)["members"]) for line in lines]


def test_an_honest_sum_is_unmasked_and_remembered(table: Server) -> None:
    table.begin("abcd").whole()
    assert [added(table, name) for name in "abcde"] == [["abcd"]] * 4 + [[]]


# --- Keys ------------------------------------------------------------------------------------------------


def test_a_key_that_the_server_put_in_anothers_place_is_found_out(table: Server) -> None:
    sum_ = table.begin("abc")
    sum_.setup()
    other = Server.begin(table, "abc", Job("", 2, "histology"))
    other.setup(only="b")  # keys that b made itself, but for another sum
    for keys, signed in ((other.keys["b"], sum_.signed["b"]), (other.keys["b"], other.signed["b"])):
        sum_.keys["b"], sum_.signed["b"] = keys, signed
        fresh = copy.deepcopy(table.contexts["a"])
        with refused(Outcome.SUM_BROKEN, match="b did not sign these keys for this sum"):
            sum_.share(only="a")
        table.contexts["a"] = fresh


@pytest.mark.parametrize("members", ["abz", "abcz", "zabc"])
def test_a_member_that_the_scenario_does_not_name_is_not_one(table: Server, members: str) -> None:
    with refused(Outcome.SUM_NOT_POSSIBLE, match="not trained in stage 1"):
        table.begin(members).setup(only="a")


def test_the_cohort_is_counted_on_the_sites_own_register(table: Server) -> None:
    """The scenario names c, but this site's register does not: the server may have made it up."""
    site = table.institutions["a"].site
    register = read_register(site.register)
    known = {name: keys for name, keys in register.institutions.items() if name != "c"}
    own = site.register.with_name("a.json")
    own.write_bytes(register.model_copy(update={"institutions": known}).text())
    table.institutions["a"].site = replace(site, register=own)
    with refused(Outcome.COHORT_TOO_SMALL, match=r"\['c'\]: not in the register"):
        table.begin("abc").setup(only="a")


def test_with_a_key_of_the_servers_own_for_a_name_nobody_shares(table: Server) -> None:
    """The server controls the scenario and the list, but not the register of the members."""
    own = Ed25519PrivateKey.generate()
    sum_ = table.begin("abc")
    sum_.setup(only="ab")
    sum_.keys["c"] = sum_.keys["b"]
    about = sum_.request("a", "setup", {}).of_run("run", table.scenario.digest())
    sum_.signed["c"] = bytes.fromhex(signature_of(own, about.keys_statement("c", sum_.keys["c"])))
    with refused(Outcome.SUM_BROKEN, match="c did not sign"):
        sum_.share(only="a")
    assert (
        Keys(signing=public_hex(own))
        not in read_register(table.institutions["a"].site.register).institutions.values()
    )


def test_members_that_are_told_different_things_find_it_out(table: Server) -> None:
    """Other members, another question, other rules: then the signatures are over another sum."""
    whole, part = table.begin("abcd"), table.begin("bcd")
    whole.setup(only="a")
    part.setup()
    whole.keys |= part.keys
    whole.signed |= part.signed
    with refused(Outcome.SUM_BROKEN, match="did not sign these keys for this sum"):
        whole.share(only="a")


def test_a_weight_that_makes_the_others_vanish_is_found_out(table: Server) -> None:
    """With a larger max_weight a member's share is smaller, and the sum is nearly that of one member."""
    for_a, for_others = table.begin("abc"), table.begin("abc", max_weight=2.0**32)
    for_a.setup(only="a")
    for_others.setup(only="bc")
    for_a.keys |= for_others.keys
    for_a.signed |= for_others.signed
    with refused(Outcome.SUM_BROKEN, match="did not sign these keys for this sum"):
        for_a.share(only="a")


@pytest.mark.parametrize("weight", [100.0, 2.0**39.58317751481247, 2.0**33, 1e30])
def test_nor_does_one_that_all_are_told_round_the_members_apart(table: Server, weight: float) -> None:
    with refused(Outcome.SUM_NOT_POSSIBLE, match="max_weight: expected a power of two"):
        table.begin("abc", max_weight=weight).setup(only="a")


# --- Order -----------------------------------------------------------------------------------------------


def test_every_exchange_is_answered_once_and_in_order(table: Server) -> None:
    sum_ = table.begin("abc")
    with refused(Outcome.SUM_NOT_POSSIBLE, match="agree before setup"):
        sum_.agree("abc", only="a")
    steps: list[Any] = [sum_.setup, sum_.share, sum_.collect]
    steps += [lambda only="": sum_.agree("abc", only=only), lambda only="": sum_.unmask("abc", only=only)]
    for number, step in enumerate(steps):
        step()
        for earlier in steps[: number + 1]:
            with refused(Outcome.REPEATED):
                earlier(only="a")
        if number < 3:
            with refused(Outcome.SUM_NOT_POSSIBLE, match="unmask after"):
                sum_.unmask("abc", only="a")


def test_keys_for_one_task_are_never_used_for_another(table: Server) -> None:
    sum_ = table.begin("abc")
    sum_.setup()
    sum_.share()
    other = replace(sum_, job=Job("", 2, "histology"))
    with refused(Outcome.SUM_NOT_POSSIBLE, match="of another sum"):
        other.collect(only="a")


def alone(name: str, request: SecureRequest) -> SecureRequest:
    """Another question under the digest of the agreed one."""
    asks = replace(request.asks, config={**request.asks.config, "alone": True})
    return replace(request, asks=asks)


def longer(name: str, request: SecureRequest) -> SecureRequest:
    """More arrays than the agreed question has."""
    return replace(request, asks=replace(request.asks, arrays={"layer": {"w": np.ones(3, np.float32)}}))


@pytest.mark.parametrize("lie", [alone, longer])
def test_the_question_cannot_change_on_the_way(table: Server, lie: Any) -> None:
    sum_ = table.begin("abc")
    sum_.setup()
    sum_.share()
    with refused(Outcome.SUM_BROKEN, match="another question"):
        sum_.collect(lie, only="a")


def test_a_share_that_is_not_the_members_own_is_not_decrypted(table: Server) -> None:
    sum_ = table.begin("abc")
    sum_.setup()
    sum_.share()
    sum_.shares["b", "a"] = sum_.shares["c", "a"]
    with refused(Outcome.SUM_BROKEN):
        sum_.collect(only="a")
    with refused(Outcome.SUM_BROKEN, match="expected a share from every other member"):
        sum_.collect(lambda _, request: with_protocol(request, srcs=[2], ctxts=[b"x"]), only="b")


# --- The consistency round ---------------------------------------------------------------------------------


def masked(table: Server, members: str = "abcde") -> Attempt:
    """A sum whose members sent their masked arrays."""
    sum_ = table.begin(members)
    sum_.setup()
    sum_.share()
    sum_.collect()
    return sum_


def test_two_lists_of_survivors_are_never_both_unmasked(table: Server) -> None:
    """With the shares for both lists the server could unmask the member that is in one of them only."""
    sum_ = masked(table)
    sum_.agree("abcd", only="ab")
    sum_.agree("abcde", only="cde")
    for survivors, receivers in (("abcd", "ab"), ("abcde", "cde")):
        for name in receivers:
            with refused(Outcome.SUM_BROKEN, match="members signed the list, expected 4"):
                sum_.unmask(survivors, only=name)


def test_another_list_than_the_signed_one_is_not_unmasked(table: Server) -> None:
    sum_ = masked(table)
    sum_.agree("abcde")
    with refused(Outcome.SUM_BROKEN, match="another list of members"):
        sum_.unmask("abcd", only="a")
    both = {"active_nids": [1, 2, 3, 4, 5], "dead_nids": [5], SIGNERS: [1], SIGNATURES: [b"x"]}
    with refused(Outcome.REPEATED):
        sum_.ask("a", "unmask", both)
    with refused(Outcome.SUM_BROKEN, match="another list of members"):
        sum_.ask("b", "unmask", both)


def test_signatures_that_count_are_those_of_different_members_of_this_sum(table: Server) -> None:
    sum_ = masked(table)
    sum_.agree("abcde")
    sum_.agreed = dict.fromkeys("abcd", sum_.agreed["a"])
    with refused(Outcome.SUM_BROKEN, match="1 members signed the list, expected 4"):
        sum_.unmask("abcde", only="a")
    with refused(
        Outcome.SUM_BROKEN, match="a setting is missing or has another form"
    ):  # one member four times
        sum_.unmask("abcde", lambda _, request: with_protocol(request, signers=[2, 2, 2, 2]), only="b")


def test_nobody_signs_a_list_that_is_too_short_or_without_itself(table: Server) -> None:
    sum_ = masked(table)
    with refused(Outcome.COHORT_TOO_SMALL, match="3 members in the sum, expected 4"):
        sum_.agree("abc", only="a")
    with refused(Outcome.SUM_BROKEN, match="this institution among them"):
        sum_.agree("acde", only="b")
    with refused(Outcome.SUM_BROKEN):
        sum_.ask("c", "agree", {"active_nids": [1, 2, 3, 4, 9]})


def test_after_the_last_exchange_the_nodes_state_holds_no_secret(table: Server) -> None:
    table.begin("abc").whole()
    state = table.contexts["a"].state.config_records
    assert set(state["secure-sum-a"]) == set()
    assert set(state["secure-sum-a-about"]) == {"sum", "step", "asked", "past", "keys", "survivors"}


# --- Sums have memory --------------------------------------------------------------------------------------


def test_two_sums_cannot_be_subtracted_to_the_value_of_one(table: Server, tmp_path: Path) -> None:
    table.begin("abcd").whole()
    for members in ("bcd", "abc", "abcde", "abce"):
        later = again(table, tmp_path, f"again-{members}")
        with refused(Outcome.OTHER_MEMBERS, match="had other members"):
            later.begin(members).setup(only="c")
    again(table, tmp_path, "same").begin("abcd").whole()
    assert added(table, "c") == ["abcd", "abcd"]


def test_nor_by_a_member_that_is_said_to_have_dropped_out(table: Server, tmp_path: Path) -> None:
    """The members are the same; the list of survivors makes the difference."""
    table.begin("abcde").whole()
    sum_ = masked(again(table, tmp_path))
    with refused(Outcome.OTHER_MEMBERS, match="had other members \\(e\\)"):
        sum_.agree("abcd", only="a")


def test_nor_by_other_tasks_over_the_same_images(table: Server, tmp_path: Path) -> None:
    table.begin("abcd").whole()
    table.begin("abc", Job("", 2, "histology")).setup(only="a")  # other images
    later = again(table, tmp_path, "renamed")
    site = later.institutions["a"].site
    later.institutions["a"].site = replace(site, tasks={**site.tasks, "histology": site.tasks["polyp"]})
    with refused(Outcome.OTHER_MEMBERS):
        later.begin("abc", Job("", 2, "histology")).setup(only="a")


def test_nor_by_tasks_in_a_question_that_has_none(table: Server, tmp_path: Path) -> None:
    """Layers are learned on tasks that the question may name; a router is that of the job's task."""

    def elsewhere(_: str, request: SecureRequest) -> SecureRequest:
        config = {**request.asks.config, "tasks": '["histology"]'}
        return replace(request, asks=replace(request.asks, config=config))

    table.begin("abcd").whole()
    with refused(Outcome.OTHER_MEMBERS):
        again(table, tmp_path, "renamed").begin("abc").setup(elsewhere, only="a")


def test_nor_by_the_same_images_in_the_folder_above(table: Server, tmp_path: Path) -> None:
    """polyp is all of a folder, histology the one subfolder in it."""
    images = TaskDescription(path=str(tmp_path / "images"))
    below = images.model_copy(update={"path": f"{images.path}/all"})

    def described(asked: Server) -> Server:
        site = asked.institutions["a"].site
        tasks = {"polyp": images, "histology": below}
        asked.institutions["a"].site = replace(site, tasks=tasks)
        return asked

    held = described(table).institutions["a"]
    about = table.begin("abcd").request("a", "setup", {}).of_run("run", table.scenario.digest())
    remember(held, about, ["polyp"], "abcd")
    later = described(again(table, tmp_path, "renamed")).institutions["a"]
    with refused(Outcome.OTHER_MEMBERS, match="had other members \\(d\\)"):
        check_members_before(later, about, ["histology"], "abc")


def test_what_was_never_agreed_to_does_not_count(table: Server, tmp_path: Path) -> None:
    masked(table, "abcd")
    later = again(table, tmp_path)
    later.begin("abc").whole()
    assert added(table, "a") == ["abc"]


def test_nor_can_three_sums_that_differ_by_a_cohort_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """{a, ..., g} - {a, b, c} - {d, e, f} = g, although g took part in one sum only."""
    monkeypatch.setenv("CASAM_HOME", str(tmp_path / "home"))
    table = Server.of(tmp_path, "abcdefg")
    table.begin("abc").whole()
    table.begin("def").whole()  # disjoint sums are both made
    later = Server.of(tmp_path, "abcdefg", "again")
    for name, institution in later.institutions.items():
        institution.site = replace(institution.site, sums=table.institutions[name].site.sums)
    later.begin("abcdefg").setup(only="g")  # it knows of nothing
    for name in "abcdef":
        with refused(Outcome.OTHER_MEMBERS):
            later.begin("abcdefg").setup(only=name)
    forget_institutions()


def told_alone(table: Server, name: str) -> RouterReply:
    """The answer of an institution whose policy now lets the question of the sum be answered alone."""
    institution = table.institutions[name]
    institution.site = replace(institution.site, policy=Policy())
    return permission.describe(institution, RouterRequest(Job(name, 1, "polyp"), alone=False))


def test_who_was_in_a_sum_does_not_answer_alone(table: Server) -> None:
    """{a, b, c} - {b} - {c} = a."""
    table.begin("abc").whole()
    with refused(Outcome.OTHER_MEMBERS, match="had other members \\(a, c\\)"):
        told_alone(table, "b")
    assert added(table, "b") == ["abc"]


def test_who_answered_alone_is_in_no_sum_of_the_same_images(table: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert told_alone(table, "b").images == 5  # the same answer again is not another sum
    assert added(table, "b") == ["b"]
    later = again(table, tmp_path)
    with refused(Outcome.OTHER_MEMBERS, match="had other members \\(a, c\\)"):
        later.begin("abc").setup(only="b")
    later.begin("abc", Job("", 2, "histology")).setup(only="b")  # other images


def test_a_release_with_noise_of_its_own_is_not_remembered(tmp_path: Path, table: Server) -> None:
    table.begin("abcd").whole()
    later = again(table, tmp_path)
    noisy = {"router": {"aggregation": "secagg", "noise": "dp"}, "budget": {"epsilon": 8.0, "delta": 0.01}}
    for name, institution in later.institutions.items():
        site = Server.of(tmp_path, "abcde", f"noisy-{name}", **noisy).institutions[name].site
        institution.site = replace(site, sums=institution.site.sums, run="again")
    later.begin("abc").setup(only="a")  # the difference contains the noise of a, b and c
    assert added(table, "a") == ["abcd"]


def test_a_memory_that_cannot_be_read_stops_sums(table: Server) -> None:
    sums = table.institutions["a"].site.sums
    sums.write_text('{"members": "abc"}\n')
    with pytest.raises(PolicyError, match=r"sums.jsonl: line 1 is not a secure sum"):
        table.begin("abc").setup(only="a")


# --- Any exchange ------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 5, 7, 2**31, 2**62, 1.0, -0.5, 1e300, math.inf, math.nan, "", "a",
    "setup", "unmask", "x" * 5000, b"", b"x", b"x" * 5000, [], [1], [1, 1], [1, 2, 3], [-1, 2**40], [True],
    [1.5], ["a"], [b""], [b"x", b"y"], [b"x"] * 40, list(range(1, 60)),
]  # fmt: skip
"""Values for any setting."""


def mutated(payload: Payload, rng: random.Random) -> Payload:
    """The payload of a request with one or two changes anywhere."""
    config, arrays = dict(payload.config), {name: dict(group) for name, group in payload.arrays.items()}
    for _ in range(rng.choice([1, 1, 1, 2])):
        place = rng.random()
        if place < 0.3:
            key = rng.choice([*config, "patient"])
            value = rng.choice([odd for odd in ODD if type(odd) in (bool, int, float, str)])
            config.pop(key, None)
            if rng.random() < 0.7:
                config[key] = value
        elif place < 0.4 and arrays:
            name = rng.choice(list(arrays))
            group = arrays.pop(name)
            if rng.random() < 0.7:
                arrays[rng.choice([*STEPS_OF_A_SUM, "layer"])] = group
        else:
            for step, group in arrays.items():
                if step in STEPS_OF_A_SUM and "protocol" in group:
                    group["protocol"] = odd_protocol(group["protocol"], rng)
    return Payload(config, arrays, payload.metrics)


def odd_protocol(data: Any, rng: random.Random) -> Any:
    """The packed settings of an exchange with one change."""
    if rng.random() < 0.15:
        cut = rng.randrange(len(data) or 1)
        return rng.choice([data[:cut], np.frombuffer(rng.randbytes(40), np.uint8), data.astype(np.float64)])
    try:
        settings = dict(unpacked(data))
    except Exception:
        return data
    key = rng.choice([*settings, "patient", "4", "01", "999"])
    settings.pop(key, None)
    value = rng.choice(ODD)
    if value is not None:
        settings[key] = value
    return packed(ConfigRecord(settings))


def test_no_exchange_ends_with_anything_but_a_word(table: Server) -> None:
    """2,500 changed exchanges: each is answered or refused by name."""
    recorded: list[tuple[Payload, RecordDict]] = []
    ask = Server.ask

    def recording(self: Server, name: str, request: SecureRequest) -> dict[str, Any]:
        if name == "a":
            state = copy.deepcopy(self.contexts[name].state) if name in self.contexts else RecordDict()
            recorded.append((request.to_payload(), state))
        return ask(self, name, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "ask", recording)
        table.begin("abcd").whole()
    sums = table.institutions["a"].site.sums
    sums.unlink()
    rng, words = random.Random(0), dict[str, int]()
    for number in range(2500):
        payload, state = recorded[number % len(recorded)]
        context = Context(1, 1, {}, copy.deepcopy(state), {})
        word = "answered"
        try:
            take_part(table.institutions["a"], SecureRequest.of(mutated(payload, rng)), context)
        except RefusalError as refusal:
            word = refusal.outcome.value
        except CasamError as error:
            word = error.code
        words[word] = words.get(word, 0) + 1
        sums.unlink(missing_ok=True)
    assert words.keys() <= {
        "answered", "sum-broken", "sum-not-possible", "repeated", "cohort-too-small", "not-in-scenario"
    }  # fmt: skip
    assert words["sum-broken"] > 1000
    assert words["answered"] < 400
