"""split_samples: the properties a fair and private split must have, for any dataset."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from casam_core.config.data_spec import DataSpec, LimitSpec, SplitSpec
from casam_core.config.policy import BudgetPolicy, Policy
from casam_core.errors import DataError
from client.data.dataset import Sample
from client.data.splits import PARTS, Split, kept_key, simulated_key, split_samples
from client.data.task_data import divide, division_of

NO_LIMIT = LimitSpec()
SCOPE = "site-a/nuclei"


def images(count: int) -> tuple[Sample, ...]:
    return tuple(Sample(f"{i:04d}") for i in range(count))


def split(
    samples: tuple[Sample, ...],
    spec: SplitSpec | None = None,
    limit: LimitSpec = NO_LIMIT,
    *,
    seed: int = 0,
    private: bool = False,
) -> Split:
    key = simulated_key(seed, "site-a")
    return split_samples(samples, spec or SplitSpec(), limit, key=key, scope=SCOPE, private=private)


def sizes(parts: Split) -> tuple[int, int, int]:
    return len(parts.train), len(parts.val), len(parts.test)


def unit_of(sample: Sample) -> tuple[str, str]:
    return ("image", sample.id) if sample.group is None else ("group", sample.group)


def part_by_id(parts: Split) -> dict[str, str]:
    return {sample.id: name for name in PARTS for sample in parts.part(name)}


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Sample, ...]:
    """3 to 60 images; each of a named group or of none, in shuffled order."""
    groups = draw(st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), min_size=3, max_size=60))
    samples = [Sample(f"{i:03d}", group) for i, group in enumerate(groups)]
    assume(len({unit_of(sample) for sample in samples}) >= 3)
    random.Random(draw(st.integers(0, 99))).shuffle(samples)
    return tuple(samples)


@st.composite
def specs(draw: st.DrawFn) -> SplitSpec:
    val = draw(st.floats(0.01, 0.9))
    test = draw(st.floats(0.01, 0.98 - val)) if val < 0.97 else 0.01
    return SplitSpec(val=val, test=test, sequence=draw(st.booleans()))


caps = st.one_of(st.none(), st.integers(1, 20))
seeds = st.integers(0, 2**31)


@given(datasets(), specs(), seeds)
def test_parts_are_a_partition_with_whole_groups(
    samples: tuple[Sample, ...], spec: SplitSpec, seed: int
) -> None:
    parts = split(samples, spec, seed=seed)
    assert min(sizes(parts)) >= 1
    together = parts.train + parts.val + parts.test
    assert len(together) == len(samples)
    assert set(together) == set(samples)
    units = [{unit_of(sample) for sample in part} for part in (parts.train, parts.val, parts.test)]
    assert len(set.union(*units)) == sum(map(len, units))
    for part in (parts.train, parts.val, parts.test):
        assert [sample.id for sample in part] == sorted(sample.id for sample in part)


@given(datasets(), specs(), seeds)
def test_the_order_of_the_samples_does_not_matter(
    samples: tuple[Sample, ...], spec: SplitSpec, seed: int
) -> None:
    limit = LimitSpec(train=4, val=2, test=3)
    assert split(samples, spec, limit, seed=seed) == split(samples[::-1], spec, limit, seed=seed)


@given(st.integers(30, 200), st.integers(0, 29), seeds)
def test_no_image_moves_when_another_comes_or_goes(count: int, gone: int, seed: int) -> None:
    """Of 1,000 images, one less moved 49 to 495 others when the split was a permutation."""
    whole = images(count)
    fewer = whole[:gone] + whole[gone + 1 :]
    try:
        before = part_by_id(split(whole, seed=seed, private=True))
        after = part_by_id(split(fewer, seed=seed, private=True))
    except DataError:  # a part has no image: refused, not filled from another part
        assume(False)
    del before[whole[gone].id]
    assert after == before


@given(st.lists(st.integers(1, 4), min_size=25, max_size=60), st.integers(0, 24), seeds)
def test_no_group_moves_when_another_comes_or_goes(members: list[int], gone: int, seed: int) -> None:
    whole = tuple(Sample(f"{g:02d}-{i}", f"p{g}") for g, size in enumerate(members) for i in range(size))
    fewer = tuple(sample for sample in whole if sample.group != f"p{gone}")
    try:
        before = part_by_id(split(whole, seed=seed, private=True))
        after = part_by_id(split(fewer, seed=seed, private=True))
    except DataError:
        assume(False)
    assert after == {id_: part for id_, part in before.items() if not id_.startswith(f"{gone:02d}-")}


@pytest.mark.parametrize(
    ("spec", "limit", "count", "named"),
    [
        (SplitSpec(sequence=True), NO_LIMIT, 40, "split.sequence"),
        (SplitSpec(), LimitSpec(train=10), 40, "limit"),
        (SplitSpec(val=0.001), NO_LIMIT, 40, "none in val"),
    ],
)
def test_noise_is_refused_where_one_image_would_move_another(
    spec: SplitSpec, limit: LimitSpec, count: int, named: str
) -> None:
    assert min(sizes(split(images(count), spec, limit))) >= 1
    with pytest.raises(DataError, match=named):
        split(images(count), spec, limit, private=True)


@given(st.integers(200, 400), st.integers(0, 199), seeds)
def test_a_share_of_the_images_is_drawn_one_by_one(count: int, gone: int, seed: int) -> None:
    """The sound way to use fewer images under noise: no other image takes the place of one that goes."""
    whole = images(count)
    spec = SplitSpec(use=0.4)
    before = part_by_id(split(whole, spec, seed=seed, private=True))
    after = part_by_id(split(whole[:gone] + whole[gone + 1 :], spec, seed=seed, private=True))
    before.pop(whole[gone].id, None)
    assert after == before
    assert abs(len(before) - 0.4 * count) < 6 * (0.24 * count) ** 0.5


def test_a_patient_has_the_same_part_in_every_task() -> None:
    one = tuple(Sample(f"ct-{i}", f"p{i}") for i in range(40))
    other = tuple(Sample(f"mr-{i}", f"p{i}") for i in range(20, 60))
    first = {sample.group: name for name in PARTS for sample in split(one).part(name)}
    second = {sample.group: name for name in PARTS for sample in split(other).part(name)}
    assert all(first[group] == second[group] for group in first.keys() & second.keys())


@given(datasets(), specs(), seeds, caps, caps, caps)
def test_caps_hold_and_do_not_move_each_other(
    samples: tuple[Sample, ...],
    spec: SplitSpec,
    seed: int,
    train: int | None,
    val: int | None,
    test: int | None,
) -> None:
    full = split(samples, spec, seed=seed)
    capped = split(samples, spec, LimitSpec(train=train, val=val, test=test), seed=seed)
    for name, cap in (("train", train), ("val", val), ("test", test)):
        whole, part = getattr(full, name), getattr(capped, name)
        assert len(part) == (len(whole) if cap is None else min(cap, len(whole)))
        assert [sample for sample in whole if sample in part] == list(part)
        alone = split(samples, spec, LimitSpec.model_validate({name: cap}), seed=seed)
        assert getattr(alone, name) == part


@given(st.integers(3, 80), seeds)
def test_a_lower_cap_keeps_a_subset_of_a_higher_one(count: int, seed: int) -> None:
    low = split(images(count), limit=LimitSpec(train=3, test=1), seed=seed)
    high = split(images(count), limit=LimitSpec(train=9, test=4), seed=seed)
    assert set(low.train) <= set(high.train)
    assert set(low.test) <= set(high.test)


@pytest.mark.parametrize("seed", range(5))
def test_many_images_meet_the_shares(seed: int) -> None:
    """5,000 independent draws: within five standard deviations of each share."""
    parts = split(images(5000), SplitSpec(val=0.15, test=0.25), seed=seed)
    for size, share in zip(sizes(parts), (0.6, 0.15, 0.25), strict=True):
        assert abs(size - 5000 * share) <= 5 * (5000 * share * (1 - share)) ** 0.5


@given(st.lists(st.integers(1, 6), min_size=12, max_size=40), seeds)
def test_a_sequence_of_groups_comes_within_one_group_of_the_shares(members: list[int], seed: int) -> None:
    samples = tuple(Sample(f"{g:02d}-{i}", f"{g:02d}") for g, size in enumerate(members) for i in range(size))
    parts = split(samples, SplitSpec(sequence=True), seed=seed)
    assert abs(len(parts.test) - 0.25 * len(samples)) <= max(members)
    assert abs(len(parts.val) - 0.15 * len(samples)) <= max(members)


@given(st.integers(3, 80), specs(), seeds)
def test_sequences_are_cut_into_contiguous_ranges(count: int, spec: SplitSpec, seed: int) -> None:
    samples = tuple(Sample(f"frame{i}") for i in range(count))
    parts = split(samples, spec.model_copy(update={"sequence": True}), seed=seed)
    numbers = [sorted(int(s.id[5:]) for s in part) for part in (parts.train, parts.val, parts.test)]
    assert numbers[0] + numbers[1] + numbers[2] == list(range(count))


def test_sequence_of_groups_keeps_them_whole_and_in_order() -> None:
    samples = tuple(Sample(f"{i:02d}", f"scan-{i // 5}") for i in range(40))
    parts = split(samples, SplitSpec(val=0.2, test=0.3, sequence=True))
    assert parts.train == samples[:20]
    assert parts.val == samples[20:30]  # the border nearest to 28 that cuts no group
    assert parts.test == samples[30:]


def test_a_raised_digit_in_a_name_is_no_number() -> None:
    samples = tuple(Sample(f"{frame}²") for frame in (1, 2, 10, 20))
    parts = split(samples, SplitSpec(sequence=True))
    assert [sample.id for part in PARTS for sample in parts.part(part)] == ["1²", "2²", "10²", "20²"]


def test_the_smallest_dataset_has_an_image_in_each_part() -> None:
    assert sizes(split(images(3))) == (1, 1, 1)
    assert sizes(split(images(40), SplitSpec(sequence=True))) == (24, 6, 10)


def test_the_key_decides_the_draw() -> None:
    assert split(images(40)) == split(images(40))
    assert split(images(40)) != split(images(40), seed=1)
    assert simulated_key(0, "site-a") != simulated_key(0, "site-b")


def test_the_draw_is_pinned() -> None:
    """A change of these ids changes every published number: it must be meant."""
    parts = split(images(12), limit=LimitSpec(train=3))
    found = [[int(sample.id) for sample in part] for part in (parts.train, parts.val, parts.test)]
    assert found == [[5, 7, 10], [3, 4], [0, 1, 2, 6, 8, 9, 11]]


def test_an_ungrouped_sample_is_not_joined_to_a_group_of_its_name() -> None:
    samples = (Sample("a", "x"), Sample("b", "x"), Sample("x"), Sample("y"))
    for seed in range(20):
        parts = [{sample.id for sample in split(samples, seed=seed).part(name)} for name in PARTS]
        assert {"a", "b"} in parts, "the group has two images and stays alone: there are three groups"


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images(count: int, sequence: bool) -> None:
    with pytest.raises(DataError) as caught:
        split(images(count), SplitSpec(sequence=sequence))
    text = str(caught.value)
    assert text.startswith("site-a/nuclei: expected at least 3 images")
    assert f"found {count} image" in text
    assert "zero test images" in text


def test_too_few_groups() -> None:
    samples = tuple(Sample(f"{i}", f"patient-{i % 2}") for i in range(10))
    with pytest.raises(DataError, match=r"at least 3 groups .* found 2 groups with 10 images, .*zero test"):
        split(samples)


def test_a_policy_that_protects_groups_needs_a_group_for_every_image(tmp_path: Path) -> None:
    """Without a pattern every image would be a unit of its own, and a patient in several parts."""
    named = tuple(Sample(f"p{i // 3}-{i}", f"p{i // 3}") for i in range(60))
    unnamed = (*named[:-1], Sample("p19-59"))
    policy = Policy(budget=BudgetPolicy(unit="group"))
    divide(named, DataSpec(path="x"), simulated_key(0, "a"), SCOPE, policy)
    with pytest.raises(DataError, match=r"budget.unit is 'group', found 1 of 60 images without one"):
        divide(unnamed, DataSpec(path="x"), simulated_key(0, "a"), SCOPE, policy)
    divide(unnamed, DataSpec(path="x"), simulated_key(0, "a"), SCOPE, Policy())


def test_the_site_keeps_its_own_key(tmp_path: Path) -> None:
    home = tmp_path / "home"
    key = kept_key(home)
    assert len(key) == 32
    assert kept_key(home) == key, "made once"
    assert kept_key(tmp_path / "other") != key
    assert (home / "split.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir()] == ["split.key"]
    (home / "split.key").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"expected 32 bytes, found 3; restore"):
        kept_key(home)


def test_the_division_names_all_that_decides_a_part() -> None:
    spec, key = DataSpec(path="x"), simulated_key(0, "a")
    same = spec.model_copy(update={"path": "y"})
    assert division_of(spec, key) == division_of(same, key)
    others = [
        division_of(spec, simulated_key(1, "a")),
        *(
            division_of(spec.model_copy(update=change), key)
            for change in (
                {"group_pattern": "(.)"},
                {"limit": LimitSpec(test=3)},
                {"split": SplitSpec(test=0.3)},
            )
        ),
    ]
    assert len({division_of(spec, key), *others}) == 5
