"""MLflow: a run of the experiment `casam` in the SQLite store mlflow.db. No data is sent anywhere."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from casam_core.errors import ExportError, optional_module
from scenarios.export.curves import Curves

EXPERIMENT = "casam"
BATCH = 1000
"""Maximum number of metrics in one call of MLflow."""


def write_mlflow(curves: Curves, out: Path) -> None:
    """Write the run; show it with `mlflow ui --backend-store-uri sqlite:///OUT/mlflow.db`.

    Raises ExportError.
    """
    # By default MLflow sends usage data to its makers.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    entities, tracking = (
        optional_module(name, wanted="--to mlflow", extra="mlflow", error=ExportError)
        for name in ("mlflow.entities", "mlflow.tracking")
    )
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{(out / 'mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        files = (out / "artifacts").resolve().as_uri()
        number = client.create_experiment(EXPERIMENT, artifact_location=files)
    else:
        number = experiment.experiment_id
    mark = '"' if "'" in curves.label else "'"
    known = client.search_runs([number], filter_string=f"attributes.run_name = {mark}{curves.label}{mark}")
    if known:
        raise ExportError(f"{out / 'mlflow.db'} already holds a run {curves.label}; name another --out")
    run = client.create_run(
        number, run_name=curves.label, start_time=milliseconds(curves.started)
    ).info.run_id
    try:
        params = [entities.Param(name, value) for name, value in curves.facts.items()]
        client.log_batch(run, params=params)
        metrics = [
            entities.Metric(point.tag, point.value, milliseconds(point.time), point.step)
            for point in curves.points
        ]
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run, metrics=metrics[start : start + BATCH])
        client.set_terminated(run, end_time=milliseconds(curves.ended))
    except BaseException:
        client.delete_run(run)
        raise


def milliseconds(seconds: float) -> int:
    """MLflow's unit of time."""
    return round(seconds * 1000)
