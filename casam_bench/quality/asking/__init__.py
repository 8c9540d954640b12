"""Calibration of `casam ask`: its answers against full runs."""
