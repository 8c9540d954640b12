"""Public frames: what a place means, which files are frames, and which are shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from casam_core.config.named_parts import SHIPPED_FRAMES
from casam_core.config.public_files import digest_of_file, file_of
from casam_core.errors import BankError
from casam_core.model.backbones import BACKBONES
from casam_core.routing.features import FEATURES
from casam_core.routing.public_frames import FRAMES, PublicFrame, axes_of
from casam_use.frame_fit import make_frame

WIDTH = 20


def public(seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Three modalities around different means, with one strong direction inside each."""
    rng = np.random.default_rng(seed)
    strong_F = rng.normal(0, 1, WIDTH)
    return {
        name: 10 * rng.normal(0, 1, WIDTH)
        + rng.normal(0, 1, (16, WIDTH))
        + 3 * rng.normal(0, 1, (16, 1)) * strong_F
        for name in ("a", "b", "c")
    }


FRAME = make_frame(public(), {"made": "here"})


def test_no_image_is_longer_than_one_whatever_its_feature() -> None:
    """The L2 sensitivity of a sum of places is 1, for one image more or less."""
    rng = np.random.default_rng(1)
    for scale in (0.0, 1.0, 1e3, 1e30):
        assert np.linalg.norm(FRAME.place(scale * rng.normal(0, 1, WIDTH))) <= 1 + 1e-12
    for odd in (np.inf, np.nan, 1e308):
        assert np.linalg.norm(FRAME.place(np.full(WIDTH, odd))) <= 1 + 1e-12


def test_half_of_the_public_images_are_clipped_and_their_scatter_is_diagonal() -> None:
    placed = {name: np.stack([FRAME.place(f_F) for f_F in f_NF]) for name, f_NF in public().items()}
    lengths_N = np.linalg.norm(np.concatenate([*placed.values()]), axis=1)
    assert np.mean(lengths_N > 1 - 1e-6) == pytest.approx(0.5, abs=0.05)
    assert FRAME.axes_FK.shape == (WIDTH, axes_of(WIDTH)) == (WIDTH, WIDTH // 2)
    # Half shrunk towards the diagonal: the variances stay, what lies beside them is at most halved.
    inside_KK = np.mean([np.cov(u_NK.T, bias=True) for u_NK in placed.values()], axis=0)
    assert np.trace(inside_KK) == pytest.approx(FRAME.scatter_K.sum(), rel=1e-4)


def test_a_frame_is_a_function_of_the_public_images_alone() -> None:
    again = make_frame(dict(reversed(public().items())), {"made": "here"})
    assert again.to_bytes() == FRAME.to_bytes()
    assert make_frame(public(seed=1), {}).to_bytes() != FRAME.to_bytes()


def test_a_file_gives_the_same_bits_back() -> None:
    again = PublicFrame.from_bytes(FRAME.to_bytes())
    for name in ("mean_F", "axes_FK", "scatter_K"):
        np.testing.assert_array_equal(getattr(again, name), getattr(FRAME, name))
    assert again.to_bytes() == FRAME.to_bytes()


def changed(**arrays: Any) -> bytes:
    """The file of FRAME with other arrays."""
    content = json.loads(FRAME.to_bytes())
    content["arrays"] |= arrays
    return json.dumps(content).encode()


def array(value: NDArray[Any]) -> Any:
    """An array as a frame's file holds it."""
    whole = json.loads(PublicFrame(np.float32(value), FRAME.axes_FK, FRAME.scatter_K, {}).to_bytes())
    return whole["arrays"]["mean_F"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"about": {}, "arrays": {}}',
        b'{"about": 5, "arrays": {}}',
        changed(mean_F=array(np.full(WIDTH, np.nan))),
        changed(mean_F=array(np.full(WIDTH, 1e10))),
        changed(mean_F=array(np.zeros(WIDTH + 1))),
        changed(scatter_K=array(np.zeros(WIDTH // 2))),
        changed(scatter_K=array(-np.ones(WIDTH // 2))),
        changed(scatter_K={"shape": [3], "float32": "AAAA"}),
        changed(scatter_K={"shape": [-1], "float32": "%%%"}),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="not the file of a frame"):
        FRAMES.keep(data, tmp_path / "frames")
    assert not (tmp_path / "frames").exists()


def test_a_frame_is_kept_under_its_digest_and_checked_when_it_is_read(tmp_path: Path) -> None:
    digest = FRAMES.keep(FRAME.to_bytes(), tmp_path)
    assert digest == digest_of_file(FRAME.to_bytes())
    assert FRAMES.data(digest, tmp_path) == FRAME.to_bytes()
    assert FRAMES.travelling(digest, tmp_path) == [FRAME.to_bytes()]
    file_of(tmp_path, digest).write_bytes(FRAME.to_bytes() + b" ")
    with pytest.raises(BankError, match="was altered"):
        FRAMES.data(digest, tmp_path)
    with pytest.raises(BankError, match="there is no frame 000000000000"):
        FRAMES.data("0" * 64, tmp_path)


def test_shipped_frames_are_what_their_names_say_and_do_not_travel(tmp_path: Path) -> None:
    assert {path.stem for path in FRAMES.shipped.iterdir()} == set(SHIPPED_FRAMES.values())
    for (name, features), digest in SHIPPED_FRAMES.items():
        frame = FRAMES.get(digest)
        width = BACKBONES[name].channels * (2 if features == "moments" else 1)
        assert frame.axes_FK.shape == (width, axes_of(width))
        assert frame.about["features"] == features in FEATURES
        assert FRAMES.travelling(digest, tmp_path) == []


def test_a_frame_needs_several_modalities() -> None:
    with pytest.raises(ValueError, match="at least two public modalities"):
        make_frame({"a": np.zeros((4, WIDTH))}, {})
