"""The calls of the system that casam_core.files makes, on the disks of simulated machines."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.disasters.disk import Change, Machine, PowerCutError


class SimulatedOs:
    """Takes the place of the module `os` in casam_core.files; other calls go to the real one."""

    def __init__(self, machines: dict[str, Machine], top: Path) -> None:
        self._machines, self._top = machines, str(top)
        self._skip = len(self._top) + 1
        self._owners: dict[int, Machine] = {}
        self.__dict__ |= {name: thing for name, thing in vars(os).items() if not hasattr(type(self), name)}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def _machine(self, path: Any) -> Machine | None:
        text = os.fspath(path)
        if not text.startswith(self._top):
            return None
        return self._machines.get(text[self._skip :].split("/", 1)[0])

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        machine = self._machine(path)
        if machine is None:
            return os.open(path, flags, mode)
        made = bool(flags & os.O_CREAT) and not os.path.exists(path)
        if made:
            machine.step("open")
        elif not machine.on:
            raise PowerCutError(machine.name)
        handle = os.open(path, flags, mode)
        number = os.fstat(handle).st_ino
        self._owners[handle] = machine
        machine.handles[handle] = number
        if made:
            machine.pending.append((self._named(path, number),))
            machine.done()
        return handle

    def close(self, handle: int) -> None:
        machine = self._owners.pop(handle, None)
        if machine is None or machine.handles.pop(handle, None) is not None:
            os.close(handle)

    def fdopen(self, handle: int, mode: str = "r") -> Any:
        file = os.fdopen(handle, mode)
        if (machine := self._owners.pop(handle, None)) is not None:
            machine.handles.pop(handle, None)
            machine.files.append(file)
        return file

    def write(self, handle: int, data: bytes) -> int:
        machine = self._owners.get(handle)
        if machine is None:
            return os.write(handle, data)
        try:
            machine.step("write")
        except OSError as error:
            if error.errno == errno.ENOSPC and len(data) > 1:
                return os.write(handle, data[: len(data) // 2])
            raise
        except PowerCutError:
            os.write(handle, data[: machine.random.randint(0, len(data))])
            raise
        count = os.write(handle, data)
        machine.done()
        return count

    def fsync(self, handle: int) -> None:
        machine = self._owners.get(handle)
        if machine is None:
            return
        machine.step("fsync")
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):
            machine_folder = machine.folders.setdefault(about.st_ino, {})
            kept = []
            for changes in machine.pending:
                if any(folder == about.st_ino for folder, _, _ in changes):
                    for folder, name, what in changes:
                        names = machine.folders.setdefault(
                            folder, machine_folder if folder == about.st_ino else {}
                        )
                        names.pop(name, None) if what is None else names.__setitem__(name, what)
                else:
                    kept.append(changes)
            machine.pending = kept
        else:
            machine.data[about.st_ino] = self._bytes_of(handle, about.st_size)
        machine.done()

    @staticmethod
    def _bytes_of(handle: int, size: int) -> bytes:
        reading = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)
        try:
            return os.read(reading, size)
        finally:
            os.close(reading)

    def ftruncate(self, handle: int, length: int) -> None:
        self._change(self._owners.get(handle), "ftruncate", lambda: os.ftruncate(handle, length))

    def replace(self, old: Any, new: Any) -> None:
        self._rename(old, new, "replace")

    def rename(self, old: Any, new: Any) -> None:
        self._rename(old, new, "rename")

    def _rename(self, old: Any, new: Any, call: str) -> None:
        machine = self._machine(old)
        number = os.stat(old).st_ino if machine else 0
        if machine is not None:
            machine.step(call)
            self._keep(machine, new)
            machine.pending.append((self._named(old, None), self._named(new, number)))
        os.replace(old, new)
        if machine is not None:
            machine.done()

    def unlink(self, path: Any) -> None:
        machine = self._machine(path)
        if machine is None:
            os.unlink(path)
            return
        if not os.path.lexists(path):
            if not machine.on:
                raise PowerCutError(machine.name)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        machine.step("unlink")
        self._keep(machine, path)
        machine.pending.append((self._named(path, None),))
        os.unlink(path)
        machine.done()

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        def work() -> None:
            os.mkdir(path, mode)
            number = os.stat(path).st_ino
            if machine is not None:
                machine.folders[number] = {}
                machine.pending.append((self._named(path, number),))

        machine = self._machine(path)
        self._change(machine, "mkdir", work)

    def link(self, old: Any, new: Any) -> None:
        def work() -> None:
            os.link(old, new)
            if machine is not None:
                machine.pending.append((self._named(new, os.stat(new).st_ino),))

        machine = self._machine(new)
        self._change(machine, "link", work)

    @staticmethod
    def _change(machine: Machine | None, call: str, work: Callable[[], None]) -> None:
        if machine is not None:
            machine.step(call)
        work()
        if machine is not None:
            machine.done()

    @staticmethod
    def _named(path: Any, what: int | None) -> Change:
        folder, name = os.path.split(os.fspath(path))
        return os.stat(folder).st_ino, name, what

    @staticmethod
    def _keep(machine: Machine, path: Any) -> None:
        """Remember the bytes of a file that loses this name."""
        with suppress(OSError, IsADirectoryError):
            machine.last[os.stat(path).st_ino] = Path(path).read_bytes()
