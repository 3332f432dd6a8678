import os
import resource
import signal
import warnings
from pathlib import Path

import h5py

from bdm.errors import InputError
from bdm.seal import check_hdf5

SECONDS = 60  # of the processor, and as many again as megabytes have to be read
BYTES_PER_SECOND = 10**6


def examine_hdf5(path: Path) -> None:
    """Refuse an HDF5 file that has changed since bdm wrote it; :func:`probe_hdf5` one that others wrote.

    Raises
    ------
    InputError
        If it has changed, or cannot be read through.
    """
    if not check_hdf5(path) and h5py.is_hdf5(path):
        probe_hdf5(path)


def probe_hdf5(path: Path) -> None:
    """Look through an HDF5 file in another process first, as the library can crash, or never end, on a damaged one.

    Everything but numbers is read: names, types, shapes, text, and where pieces are.

    Raises
    ------
    InputError
        If it does not get through.
    """
    read, write = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # the other process uses no lock that a thread may have had
        child = os.fork()
    if not child:
        os.close(read)
        os._exit(_look_through(path, write))
    os.close(write)
    with os.fdopen(read, errors="replace") as told:
        reason = told.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        endless = status == -signal.SIGXCPU
        reason = reason or ("reading it does not end" if endless else "the library of HDF5 fails on it")
        raise InputError(f"{path} cannot be read ({reason}); is it damaged, or misnamed?")


def _look_through(path: Path, write: int) -> int:
    """Give the exit status of the process that looks."""
    try:
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        limit = int(spent + SECONDS + path.stat().st_size / BYTES_PER_SECOND)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with h5py.File(path) as file:
            _look(file.name, file)
            file.visititems(_look)
    except BaseException as error:
        reason = str(error).strip("'\"").partition("\n")[0].rstrip(".")
        os.write(write, (reason or type(error).__name__).encode())
        return 1
    return 0


def _look(name: str, item: h5py.Group | h5py.Dataset) -> None:
    dict(item.attrs)
    if isinstance(item, h5py.Dataset):
        if item.dtype.hasobject:
            item[()]
        elif item.chunks:
            item.id.chunk_iter(lambda chunk: None)
