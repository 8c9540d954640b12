"""What is counted about institutions comes back as it was, and goes on from there."""

from __future__ import annotations

import json

from server.federation.counters import Counters, Traffic


def counted() -> Counters:
    counters = Counters(Traffic({"north": 3}, {"north": 5}))
    counters.released("north")
    counters.released("north")
    counters.refused("north", "budget-spent")
    counters.rejected("south", "train.align")
    counters.hides("north", "layer", server=5, co_holder=2)
    counters.hides("north", "layer", server=3, co_holder=4)
    counters.epsilon["north"] = {"epsilon_train": 0.1 + 0.2}
    return counters


def test_events_are_counted_and_the_least_crowd_is_kept() -> None:
    counters = counted()
    assert counters.releases == {"north": 2}
    assert counters.refusals == {"north": {"budget-spent": 1}}
    assert counters.rejections == {"south": {"train.align": 1}}
    assert counters.anonymity == {"north": {"layer": {"server": 3, "co_holder": 2}}}


def test_counting_goes_on_behind_a_copy() -> None:
    kept = json.loads(json.dumps(counted().as_dict()))
    again = Counters.from_dict(kept)
    assert again == counted()
    again.released("north")
    again.traffic.add(again.traffic.up, "north", 4)
    assert again.releases == {"north": 3}
    assert again.traffic.up == {"north": 7}
    assert kept == counted().as_dict()  # the copy is its own


def test_the_anonymity_of_sums_is_that_of_their_differences() -> None:
    counters = Counters()
    counters.added("adapter", "train.align polyp", "abcde")
    assert counters.anonymity["a"] == {"adapter": {"server": 5, "co_holder": 4}}
    counters.added("adapter", "train.align polyp", "abcd")  # e can be computed, a to d hide as before
    assert counters.anonymity["e"] == {"adapter": {"server": 1, "co_holder": 1}}
    assert counters.anonymity["a"] == {"adapter": {"server": 4, "co_holder": 3}}
    counters.added("adapter", "train.align polyp", "abe")  # now c and d, who are not in the last sum
    assert counters.anonymity["c"] == {"adapter": {"server": 2, "co_holder": 1}}
    counters.added("adapter", "train.align histology", "ab")  # another question
    assert counters.anonymity["a"] == {"adapter": {"server": 2, "co_holder": 1}}
    again = Counters.from_dict(counters.as_dict())
    assert again.sums == {
        "train.align polyp": [list("abcde"), list("abcd"), list("abe")],
        "train.align histology": [list("ab")],
    }
