"""Site files: written from a folder of images, or from a scenario for a rehearsal."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from casam_core.config.data_spec import OPTIONS
from casam_core.config.scenario import NAME
from casam_core.config.site_file import SiteFile, TaskDescription
from casam_core.errors import DataError
from client.data.listing import require_folder, visible_entries
from client.data.open import open_dataset
from scenarios.export.schema_pages import policy_lines, quoted
from scenarios.inspection.named_files import DICOM, ITK_VOLUMES, PIXELS, VOLUMES, says_something
from scenarios.inspection.understand import understand

HEAD = """\
# The site file: what this institution says about its images, and how it approves scenarios. The institution
# owns it. A scenario only names a task: where the images are, which of them belong to one patient and which
# share is for testing is decided here. A key behind a # has its default value; remove the # to change it.
# Check it with: casam data check --site FILE --data-root FOLDER --home FOLDER (both as in node.toml)
"""
NO_TASKS = (
    "\n# One table [tasks.NAME] per task; `casam site init FOLDER` writes them from a folder of images."
)

ENDS_IN_A_NUMBER = re.compile(r"^(.+?)[-_ .]\d+$")
"""A file name such as p12_003, as the files of one patient often have."""

OF_PHANTOMS = ("phantom", "images", "size", "seed", "shift")
LISTS = ("dataset.json", "annotations.json")
"""Files that make a folder a dataset, as `images` does."""


def site_text(tasks: Mapping[str, TaskDescription], notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """A site file with these tasks, every key, its default and its meaning. notes: by task, comments."""
    lines = [HEAD, *policy_lines(SiteFile, "")]
    lines = lines[: next(i for i, line in enumerate(lines) if line.startswith("\n## tasks"))]
    for number, (task, spec) in enumerate(tasks.items()):
        lines += ["", f"[tasks.{task}]", *(f"# {note}" for note in (notes or {}).get(task, ()))]
        lines += task_lines(spec, explained=number == 0)
    return "\n".join([*lines, *([] if tasks else [NO_TASKS]), ""])


def task_lines(spec: TaskDescription, *, explained: bool) -> Iterator[str]:
    """The keys of one task that are set. explained: also the other keys of its reader, as comments."""
    given = {"reader": spec.reader} | spec.model_dump(mode="json", exclude_defaults=True)
    yield from (f"{key} = {quoted(value)}" for key, value in dotted(given))
    if not explained:
        return
    others = {key for key, readers in OPTIONS.items() if spec.reader not in readers}
    unwanted = others | given.keys() | ({"path"} if spec.reader == "phantom" else set(OF_PHANTOMS))
    for told, line in itertools.pairwise(policy_lines(TaskDescription, "")):
        key = re.match(r"# (\w+)[.\w]* = ", line)
        if key and key[1] not in unwanted:
            yield from (told, line)


def dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a table with its key, dots between tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def site_text_of(folder: Path) -> tuple[str, list[str]]:
    """A site file for the dataset in `folder`, or for one dataset per sub-folder, and lines to show.

    Paths are relative to `folder`, which is the node's `data_root`; that of a single dataset is absolute.

    Raises DataError: there is no dataset.
    """
    folder = folder.expanduser().resolve()
    require_folder(folder, "one dataset, or a folder for each task")
    alone = is_one_dataset(folder)
    found: dict[str, TaskDescription] = {}
    notes: dict[str, list[str]] = {}
    for dataset in [folder] if alone else [entry for entry in visible_entries(folder) if entry.is_dir()]:
        name = re.sub(r"[^a-z0-9_-]+", "_", dataset.name.lower()).strip("_-")[:48]
        if not re.fullmatch(NAME, name) or name in found:
            raise DataError(
                f"{dataset}: expected a folder whose name can be a task's, found another; rename it, or "
                "write its table yourself"
            )
        path = str(dataset) if alone else dataset.name
        try:
            layout = understand(dataset)
        except DataError as fault:
            if alone:
                raise
            told = [f"{dataset.name}/ is left out: {' '.join(str(fault).split())}"]
            notes[dataset.name] = told
            continue
        table = {"reader": layout.reader, "path": path, **layout.keys}
        found[name] = TaskDescription.model_validate(table)
        notes[name] = [*layout.notes, *facts_of(found[name], folder)]
    if not found:
        raise DataError(f"{folder}: expected images/ or a folder for each task, found neither; name another")
    return site_text(found, notes), [f"{task}: {'; '.join(told)}" for task, told in notes.items()]


def is_one_dataset(folder: Path) -> bool:
    """Whether `folder` is a dataset itself; else its sub-folders are, one for each task."""
    entries = visible_entries(folder)
    files = [entry.name.lower() for entry in entries if not entry.is_dir()]
    return any(
        name.endswith((*PIXELS, *VOLUMES, *ITK_VOLUMES, *DICOM)) or name in LISTS for name in files
    ) or any(says_something(entry.name) for entry in entries if entry.is_dir())


def facts_of(spec: TaskDescription, data_root: Path) -> list[str]:
    """What the folder's files say, one line each; also why they cannot be read."""
    try:
        samples = open_dataset(spec, data_root=data_root, seed=0, institution="here").samples
    except DataError as fault:
        return [f"cannot be read yet: {' '.join(str(fault).split())}"]
    groups = {sample.group for sample in samples} - {None}
    if groups:
        return [f"{len(samples)} images in {len(groups)} groups"]
    heads = Counter(found[1] for sample in samples if (found := ENDS_IN_A_NUMBER.match(sample.id)))
    told = [f"{len(samples)} images without a group: each counts as a patient of its own"]
    if len(samples) == heads.total() > len(heads) > 1:
        told.append(f"if the names say the patient: group_pattern = '{ENDS_IN_A_NUMBER.pattern}'")
    return told
