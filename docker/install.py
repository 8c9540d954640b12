"""Make the folder given as an argument an installed package: its import path, its version, its command.

What `pip install --no-deps -e` does, without a build backend from a package index.
"""

import sys
import sysconfig
import tomllib
from pathlib import Path

root = Path(sys.argv[1])
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
packages = Path(sysconfig.get_path("purelib"))
(packages / "casam.pth").write_text(f"{root}\n")
about = packages / f"casam-{project['version']}.dist-info"
about.mkdir()
(about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: casam\nVersion: {project['version']}\n")
for name, target in project["scripts"].items():
    module, function = target.split(":")
    command = Path(sysconfig.get_path("scripts")) / name
    command.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n\n{function}()\n")
    command.chmod(0o755)
