"""An entry as an ONNX file gives, in another program, the numbers that it gives here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from casam_core.bank.entry_file import Entry
from casam_core.bank.finding import LEAST, SAME
from casam_core.errors import ExportError
from casam_core.model.forms.finder import ALIKE, PREFIX, Finder
from casam_use.loaded_bank import LoadedBank
from scenarios.export.onnx_files import write_onnx
from tests.banks import picture, tiny_backbone, tiny_entry


def noisy(entry: Entry, noise: float) -> Entry:
    """The entry with a router state that says how much noise it has."""
    return replace(entry, router={**entry.router, "noise": np.array([noise], np.float32)})


def run(file: Path, z_BCHW: torch.Tensor) -> list[np.ndarray]:
    """What onnxruntime makes of an embedding."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"z_BCHW": z_BCHW.numpy()})
    return found


def check(bank: LoadedBank, folder: Path) -> None:
    """Layers and scores of the files in `folder` are those of the bank, for known and unknown images."""
    z_BCHW = tiny_backbone().encode([picture("polyp"), picture("histology"), picture("cardiac_mr")])
    for task, loaded in bank.items():
        aligned_BCHW, score_B = run(folder / f"{task}.onnx", z_BCHW)
        np.testing.assert_allclose(aligned_BCHW, loaded.layer(z_BCHW).numpy(), atol=1e-4)
        np.testing.assert_allclose(score_B, [loaded.score(z_CHW) for z_CHW in z_BCHW], atol=1e-4)


def test_layer_and_score_are_those_of_torch_with_and_without_noise(tmp_path: Path) -> None:
    bank = LoadedBank([tiny_entry("polyp"), noisy(tiny_entry("histology"), 0.02)], "digest")
    assert write_onnx(bank, tmp_path / "onnx") == ["polyp.onnx", "histology.onnx"]
    check(bank, tmp_path / "onnx")
    told = {item.key: item.value for item in onnx.load(tmp_path / "onnx" / "polyp.onnx").metadata_props}
    assert (told["task"], told["backbone"]) == ("polyp", tiny_backbone().digest)
    assert float(told["threshold"]) == bank["polyp"].entry.threshold


@pytest.mark.slow
@pytest.mark.parametrize("form", ["scale_shift", "residual", "casam"])
def test_every_form_between_encoder_and_decoder_has_a_file(tmp_path: Path, form: str) -> None:
    bank = LoadedBank([tiny_entry("polyp", form)], "digest")
    write_onnx(bank, tmp_path / "onnx")
    check(bank, tmp_path / "onnx")


def test_a_layer_that_changes_the_mask_decoder_is_refused_by_name(tmp_path: Path) -> None:
    bank = LoadedBank([tiny_entry("polyp"), tiny_entry("histology", "low_rank_decoder")], "digest")
    with pytest.raises(
        ExportError, match=r"task 'histology': expected a form that leaves SAM's mask decoder"
    ):
        write_onnx(bank, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-4, 5.0])
def test_little_and_much_noise_is_corrected_in_the_file_as_here(tmp_path: Path, noise: float) -> None:
    bank = LoadedBank([noisy(tiny_entry("polyp"), noise)], "digest")
    write_onnx(bank, tmp_path / "onnx")
    check(bank, tmp_path / "onnx")


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "using-a-bank.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    bank = LoadedBank([tiny_entry("polyp")], "digest")
    write_onnx(bank, tmp_path / "onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"z_BCHW": tiny_backbone().encode([picture("polyp")])}
    exec(compile(code, "using-a-bank.md", "exec"), names)
    assert names["threshold"] == bank["polyp"].entry.threshold
    assert names["aligned_BCHW"].shape == names["z_BCHW"].shape


def test_the_page_says_how_casam_reads_what_a_finder_says() -> None:
    page = " ".join((Path(__file__).parents[3] / "docs" / "using-a-bank.md").read_text().split())
    assert f"A centre is a cell with a score of at least {LEAST:g} that none of its eight neighbours" in page
    assert f"whose IoU with the centre's own box is at least {ALIKE:g}, weighted by score times IoU" in page
    assert f"all but the surest of boxes that overlap by an IoU of {SAME:g}." in page


def test_an_entry_without_a_router_has_no_score(tmp_path: Path) -> None:
    bank = LoadedBank([replace(tiny_entry("polyp"), threshold=None)], "digest")
    write_onnx(bank, tmp_path / "onnx")
    z_BCHW = tiny_backbone().encode([picture("polyp")])
    (aligned_BCHW,) = run(tmp_path / "onnx" / "polyp.onnx", z_BCHW)
    np.testing.assert_allclose(aligned_BCHW, bank["polyp"].layer(z_BCHW).numpy(), atol=1e-4)


@pytest.mark.parametrize("routed", [True, False])
def test_a_finder_says_in_the_file_what_it_says_here(tmp_path: Path, routed: bool) -> None:
    learned = tiny_entry("polyp")
    finder = Finder(tiny_backbone().geometry.channels)
    torch.nn.init.normal_(finder.out.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    arrays = {f"{PREFIX}{name}": value.numpy() for name, value in finder.state_dict().items()}
    threshold = learned.threshold if routed else None
    entry = replace(learned, layer={**learned.layer, **arrays}, threshold=threshold)
    bank = LoadedBank([entry], "digest")
    write_onnx(bank, tmp_path / "onnx")
    z_BCHW = tiny_backbone().encode([picture("polyp"), picture("histology")])
    aligned_BCHW, *score, found_BNHW = run(tmp_path / "onnx" / "polyp.onnx", z_BCHW)
    assert len(score) == routed
    assert bank["polyp"].layer.finder is not None
    want_BNHW = bank["polyp"].layer.finder(z_BCHW).numpy()
    assert want_BNHW.std(axis=(0, 2, 3)).min() > 0.01
    np.testing.assert_allclose(found_BNHW, want_BNHW, atol=1e-4)
    np.testing.assert_allclose(aligned_BCHW, bank["polyp"].layer(z_BCHW).numpy(), atol=1e-4)


def test_what_has_no_file_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    other = LoadedBank([tiny_entry("polyp", kind="gaussian")], "digest")
    strange = LoadedBank([replace(tiny_entry("polyp"), task="../polyp")], "digest")
    with pytest.raises(ExportError, match="'gaussian', which has no ONNX form"):
        write_onnx(other, tmp_path / "onnx")
    with pytest.raises(ExportError, match="a name that can be a file name"):
        write_onnx(strange, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []
