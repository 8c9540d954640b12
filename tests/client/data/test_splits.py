"""split_samples: the properties a fair split must have, for any dataset."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from casam_core.config.data_spec import LimitSpec, SplitSpec
from casam_core.errors import DataError
from client.data.dataset import Sample
from client.data.splits import Split, split_samples

NO_LIMIT = LimitSpec()
SEED, SCOPE = 0, "site-a/nuclei"


def images(count: int) -> tuple[Sample, ...]:
    return tuple(Sample(f"{i:04d}") for i in range(count))


def split(
    samples: tuple[Sample, ...],
    spec: SplitSpec | None = None,
    limit: LimitSpec = NO_LIMIT,
    *,
    seed: int = SEED,
    scope: str = SCOPE,
) -> Split:
    return split_samples(samples, spec or SplitSpec(), limit, seed=seed, scope=scope)


def sizes(parts: Split) -> tuple[int, int, int]:
    return len(parts.train), len(parts.val), len(parts.test)


def unit_of(sample: Sample) -> tuple[str, str]:
    return ("image", sample.id) if sample.group is None else ("group", sample.group)


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


@given(st.integers(3, 200), specs(), seeds)
def test_ungrouped_sizes_meet_the_shares(count: int, spec: SplitSpec, seed: int) -> None:
    parts = split(images(count), spec, seed=seed)
    shares = (1 - spec.val - spec.test, spec.val, spec.test)
    # Where a share is under one image, another part gives one up: never more than two.
    for size, share in zip(sizes(parts), shares, strict=True):
        assert abs(size - count * share) <= 2


@given(st.lists(st.integers(1, 6), min_size=12, max_size=40), st.booleans(), seeds)
def test_grouped_sizes_come_within_one_group_of_the_shares(
    members: list[int], sequence: bool, seed: int
) -> None:
    samples = tuple(Sample(f"{g:02d}-{i}", f"{g:02d}") for g, size in enumerate(members) for i in range(size))
    parts = split(samples, SplitSpec(sequence=sequence), seed=seed)
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


def test_shares_in_images() -> None:
    assert sizes(split(images(40))) == (24, 6, 10)
    assert sizes(split(images(3))) == (1, 1, 1)
    assert sizes(split(images(40), SplitSpec(sequence=True))) == (24, 6, 10)


def test_seed_and_scope_decide_the_draw() -> None:
    assert split(images(40)) == split(images(40))
    assert split(images(40)) != split(images(40), seed=1)
    assert split(images(40)) != split(images(40), scope="site-b/nuclei")


def test_the_draw_is_pinned() -> None:
    """A change of these ids changes every published number: it must be meant."""
    parts = split(images(12), limit=LimitSpec(train=3))
    found = [[int(sample.id) for sample in part] for part in (parts.train, parts.val, parts.test)]
    assert found == [[5, 6, 9], [10, 11], [1, 4, 7]]


def test_an_ungrouped_sample_is_not_joined_to_a_group_of_its_name() -> None:
    samples = (Sample("a", "x"), Sample("b", "x"), Sample("x"), Sample("y"))
    parts = split(samples)
    part_of = {sample.id: part for part in (parts.train, parts.val, parts.test) for sample in part}
    assert part_of["a"] is part_of["b"]
    assert part_of["x"] is not part_of["a"]


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
