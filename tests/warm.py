"""Commands in processes of their own that start at once: as copies of one that has imported what they need."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Thread

import pytest

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["bdm.cli", "matplotlib.pyplot", "scanpy", "sklearn.ensemble", "umap"])
PROGRAM = """#!{python} -IS
import os, sys
from multiprocessing.connection import Client

with Client({address!r}) as server:
    outputs = [f"/proc/{{os.getpid()}}/fd/{{number}}" for number in (1, 2)]
    server.send((sys.argv[1:], os.getcwd(), dict(os.environ), *outputs))
    sys.exit(server.recv())
"""


def start(arguments: list[str], folder: Path, log: Path) -> ForkServerProcess:
    """Start a command in a folder, with the environment of this process, whose messages and results go to a file."""
    return _started(arguments, str(folder), dict(os.environ), str(log), str(log))


def _started(*asked: object) -> ForkServerProcess:
    process = PROCESSES.Process(target=_run, args=asked)
    process.start()
    return process


def _run(arguments: list[str], folder: str, environment: dict[str, str], *outputs: str) -> None:
    from bdm.cli import main

    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["bdm", *arguments]
    main()


@contextmanager
def warm_bdm(folder: Path) -> Iterator[None]:
    """Have the workflow find a ``bdm`` in a folder, as if Python were there, whose commands start at once."""
    address = str(folder / "socket")
    (folder / "bdm").write_text(PROGRAM.format(python=sys.executable, address=address))
    (folder / "bdm").chmod(0o755)
    with Listener(address) as listener, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.environ["PATH"])  # which the workflow changes
        patch.setattr(sys, "executable", str(folder / "python"))
        thread = Thread(target=_serve, args=(listener,))
        thread.start()
        yield
        with Client(address) as last:
            last.send(None)
        thread.join()


def _serve(listener: Listener) -> None:
    """Start what each ``bdm`` asks for, until one asks for nothing."""
    while (asked := (asker := listener.accept()).recv()) is not None:
        Thread(target=_answer, args=(asker, _started(*asked))).start()


def _answer(asker: Connection, process: ForkServerProcess) -> None:
    process.join()
    asker.send(process.exitcode)
    asker.close()
