"""A real Slurm of one node, in a separate folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel"]
ASKED = ["JobID", "State", "Comment", "MinMemory", "Partition", "tres-per-job"]
TEMPLATE = Template((Path(__file__).parent / "slurm.conf").read_text())
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian has the daemons


@dataclass(frozen=True)
class Job:
    """What Slurm reports of a job."""

    id: int
    state: str
    rule: str
    memory: str
    partition: str
    gpus: str


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs; its folder holds configuration, logs and process ids."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which Slurm's commands find the cluster."""
        path = f"{self.folder / 'bin'}:{SBIN}"
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def ask(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands."""
        return subprocess.run(command, env=self.environment, check=check, capture_output=True, text=True).stdout

    def jobs(self) -> list[Job]:
        """List all jobs, those that ended too, oldest first."""
        columns = ",".join(f"{name}:200|" for name in ASKED)
        table = self.ask("squeue", "--states=all", "--noheader", "--sort=i", f"--Format={columns}")
        rows = [[field.strip() for field in row.split("|")][:-1] for row in table.splitlines()]
        return [
            Job(int(id), state, comment.removeprefix("rule_").partition("_wildcards_")[0], *others)
            for id, state, comment, *others in rows
        ]

    def daemons(self) -> list[int]:
        """List the process ids of the daemons, the last that was started first."""
        files = [self.folder / name for name in ["slurmd.pid", "slurmctld.pid", "munge/pid"]]
        return [int(file.read_text()) for file in files if file.exists()]


def missing() -> str:
    """Explain why there can be no cluster here; nothing if there can."""
    if os.getuid() != 0:
        return "Slurm's daemons need root"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SBIN)]
    return f"no {', '.join(absent)}; Debian has them in slurmctld, slurmd and munge" if absent else ""


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and stop it at the end with all its jobs."""
    cluster = Cluster(folder)
    configure(folder)
    try:
        start(cluster)
        yield cluster
    finally:
        stop(cluster)


def configure(folder: Path) -> None:
    """Write the configuration, and a key that identifies the cluster's users."""
    host = socket.gethostname().partition(".")[0]
    for name in ["bin", "state", "spool", "munge"]:
        (folder / name).mkdir()
    (folder / "munge").chmod(0o711)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    controller_port, node_port = free_ports(2)
    ports = {"controller_port": controller_port, "node_port": node_port}
    content = TEMPLATE.substitute(ports, host=host, folder=folder, cores=os.cpu_count())
    (folder / "slurm.conf").write_text(content)
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    # Two GPUs that are scheduled as real ones, and are none.
    gpus = [f"NodeName={host} Name=gpu File={device}\n" for device in ("/dev/null", "/dev/zero")]
    (folder / "gres.conf").write_text("".join(gpus))
    # Snakemake's job step forgets SLURM_CONF before it calls srun.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)


def free_ports(n: int) -> list[int]:
    """Find ports on loopback that no one listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def start(cluster: Cluster) -> None:
    """Start the daemons, each once the one before answers."""
    munge = cluster.folder / "munge"
    files = [f"--{name}-file={munge / name}" for name in ["key", "pid", "log", "seed"]]
    cluster.ask("munged", "--force", f"--socket={munge / 'socket'}", *files)
    wait_until(lambda: (munge / "socket").exists())
    cluster.ask("slurmctld", "-i")
    cluster.ask("slurmd")
    wait_until(lambda: cluster.ask("sinfo", "--noheader", "--format=%T", check=False).startswith("idle"))


def stop(cluster: Cluster) -> None:
    """Stop all jobs and the daemons, the last one first."""
    if (cluster.folder / "slurmctld.pid").exists():
        cluster.ask("scancel", "--full", "--user=root", check=False)
        waited(lambda: not cluster.ask("squeue", "--noheader", check=False), seconds=40)
    for pid in cluster.daemons():
        end(pid)


def end(pid: int, *, seconds: float = 20) -> None:
    """End a process, by force if it does not in time."""
    for number in [signal.SIGTERM, signal.SIGKILL]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if waited(lambda: not is_running(pid), seconds=seconds):
            return


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and is not asked how by its parent (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait until something is so, and fail if it does not become so in time."""
    if not waited(true, seconds=seconds):
        raise TimeoutError(f"Slurm was not ready in {seconds} s")


def waited(true: Callable[[], bool], *, seconds: float) -> bool:
    """Wait until something is so, and return whether it became so in time."""
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.1)
    return found
