"""A real SLURM of two nodes on this machine, below one folder."""

import getpass
import os
import socket
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=86400
ReturnToService=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=normal Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n1,n2 PriorityTier=9 PreemptMode=OFF
"""


class Cluster:
    """Munge, a controller and two nodes; `end` kills them all.

    Args:
        folder: of everything that they write.
        free_port: returns a port that nobody listens on.
    """

    def __init__(self, folder, free_port):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons = []
        names = {"host": socket.gethostname(), "user": getpass.getuser(), "folder": folder}
        ports = [free_port() for _ in range(3)]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**names, ports=ports))
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)

    def start(self):
        own = [f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file")]
        own += [f"--{name}={self.folder}/munge.{name}" for name in ("log-file", "seed-file")]
        self.daemon("munged", "-F", "--force", f"--key-file={self.folder}/munge.key", *own)
        self.wait(lambda: (self.folder / "munge.socket").exists(), 10, "munge")
        self.daemon("slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            self.daemon("slurmd", "-D", "-N", node)
        self.wait(lambda: self.nodes() == ["idle", "idle"], 60, "two idle nodes")

    def daemon(self, name, *arguments):
        """Start a server that stays in the foreground, with a log of its own."""
        with (self.folder / f"{name}.out").open("ab") as log:
            command = [f"/usr/sbin/{name}", *arguments]
            environment = self.environment
            self.daemons.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )

    def end(self):
        self.run("scancel", "--user", getpass.getuser(), "--signal=KILL", check=False)
        self.run("scancel", "--user", getpass.getuser(), check=False)
        until = time.monotonic() + 600
        while time.monotonic() < until and self.run("squeue", "-h", check=False):
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(600)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command, check=True):
        """Run a command as a user of the cluster; return what it prints."""
        done = subprocess.run(
            [*map(str, command)], env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def nodes(self):
        """Return the state of each node."""
        return self.run(
            "sinfo", "--noheader", "-N", "-p", "normal", "-o", "%T", check=False
        ).split()

    def job(self, number):
        """Return what the controller knows of a job: {field: value}."""
        words = self.run("scontrol", "show", "job", number, "--oneliner").splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, condition, seconds, what):
        """Wait until a condition holds; fail with the logs when it does not in time."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"no {what} in {seconds} s\n{self.logs()}"
            time.sleep(0.25)

    def logs(self):
        """Return the last lines of the servers' logs."""
        paths = sorted(self.folder.glob("slurm*.log"))
        return "\n".join(
            f"== {path.name}\n" + "\n".join(path.read_text().splitlines()[-20:]) for path in paths
        )


def logs(folder):
    """Return what jobs have printed."""
    return "\n".join(
        f"== {path.name}\n{path.read_text()}" for path in sorted(folder.rglob("logs/*.out"))
    )
