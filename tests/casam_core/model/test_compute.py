"""Compute: what `auto` means here, what is refused, and where low precision applies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from casam_core.config.scenario import ComputeSpec
from casam_core.errors import RunError, ScenarioError
from casam_core.model.compute import Compute, Halved, prepare_process, resolve_compute


def without_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_without_an_accelerator_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_accelerators(monkeypatch)
    assert resolve_compute(ComputeSpec(threads=3)) == Compute(device="cpu", threads=3, precision="float32")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    without_accelerators(monkeypatch)
    with pytest.raises(ScenarioError, match=rf"compute\.device is '{device}'.*use 'cpu' or 'auto'"):
        resolve_compute(ComputeSpec(device=device))


@pytest.mark.parametrize(("fast", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_automatic_precision_is_bfloat16_only_where_the_chip_likes_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str
) -> None:
    without_accelerators(monkeypatch)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    assert resolve_compute(ComputeSpec(precision="auto")).precision == precision
    assert resolve_compute(ComputeSpec(precision="float32")).precision == "float32"


@pytest.mark.parametrize("encoder", ["plain", "fast", "compiled"])
def test_every_process_computes_deterministically(encoder: str) -> None:
    torch.use_deterministic_algorithms(False)
    prepare_process(Compute("cpu", 1, "float32", encoder))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_variant_names_device_precision_and_threads() -> None:
    assert Compute("cuda:1", 4, "bfloat16").variant == "cuda-bfloat16-t4"
    assert Compute("cpu", 1, "float32").variant == "cpu-float32-t1"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_are_computed_in_the_named_precision(precision: str) -> None:
    ones = torch.ones(4, 4)
    with Compute("cpu", 1, precision).autocast():
        assert (ones @ ones).dtype == getattr(torch, precision)
    assert (ones @ ones).dtype == torch.float32


@pytest.mark.parametrize(
    "lack",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["cuda", "mps", "cublas"],
)
def test_a_lack_of_memory_is_known_on_every_device(lack: RuntimeError) -> None:
    def work(items: Sequence[int]) -> int:
        if len(items) > room:
            raise lack
        return sum(items)

    room, halved = 2, Halved()
    assert halved.run("sums", range(4), work) == [1, 5]
    assert halved.names == ["sums"]
    room = 1
    with pytest.raises(RunError, match="sums: expected device memory for 2 at once, found too little"):
        halved.run("sums", range(4), work)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    asked: list[int] = []

    def work(items: Sequence[int]) -> int:
        asked.append(len(items))
        raise RuntimeError("expected all tensors on one device")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="on one device"):
            Halved().run("sums", range(4), work)
    with pytest.raises(RuntimeError, match="on one device"):
        Halved(["sums"]).run("sums", range(4), work)
    assert asked == [4, 4, 2]
