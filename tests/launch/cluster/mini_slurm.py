"""As much of Slurm as a submitted script meets: shell commands on this machine.

Jobs start when `work` is called, one after another, each task in a process of
its own, with the environment that Slurm gives it.
"""

import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time

_COMMANDS = {
  "sbatch": """
import os, pathlib, shutil, sys
queue = pathlib.Path(os.environ["MINI_SLURM"])
number = 1000 + len(list(queue.glob("*.sh")))
shutil.copy(sys.argv[-1], queue / f"{number}.sh")
print("Submitted batch job", number)
""",
  "scontrol": """
import os, pathlib, sys
assert sys.argv[1] == "requeue", sys.argv
pathlib.Path(os.environ["MINI_SLURM"], sys.argv[2] + ".again").touch()
""",
  "srun": """
import os, pathlib, subprocess, sys, time
rest = sys.argv[1:]
output = rest[rest.index("--output") + 1]
while rest[0].startswith("-"):
  rest = rest[2:] if rest[0] in ("--output", "--error") else rest[1:]
tasks = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
  own = os.environ | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
  for sign, value in (("%A", own.get("SLURM_ARRAY_JOB_ID", "")),
                      ("%a", own.get("SLURM_ARRAY_TASK_ID", "")),
                      ("%j", own["SLURM_JOB_ID"])):
    output = output.replace(sign, value)
  log = open(output.replace("%t", str(rank)), "a")
  tasks.append(subprocess.Popen(rest, env=own, stdout=log, stderr=log))
again = pathlib.Path(os.environ["MINI_SLURM"], os.environ["SLURM_JOB_ID"] + ".again")
while any(task.poll() is None for task in tasks):
  if again.exists():  # a job that is queued again is taken away
    for task in tasks:
      task.kill()
  time.sleep(0.05)
codes = [task.wait() for task in tasks]
sys.exit(max(codes, key=abs))
""",
}


class Cluster:
  """The queue of one machine."""

  def __init__(self, folder: pathlib.Path):
    self._queue = folder / "queue"
    commands = folder / "bin"
    for path in (self._queue, commands):
      path.mkdir(parents=True)
    for name, code in _COMMANDS.items():
      path = commands / name
      path.write_text(f"#!{sys.executable}\n{code}")
      path.chmod(path.stat().st_mode | stat.S_IEXEC)
    self.environment = {
      "MINI_SLURM": str(self._queue),
      "PATH": f"{commands}:{os.environ['PATH']}",
    }

  def scripts(self) -> dict[str, str]:
    """What was submitted, by job id."""
    return {p.stem: p.read_text() for p in sorted(self._queue.glob("*.sh"))}

  def work(self, stop_when=None) -> dict[str, int]:
    """Runs all jobs; exit status by id.

    Args:
      stop_when: once this is true, every process of the first job gets SIGUSR2,
        as before its limit.
    """
    statuses = {}
    for number, script in self.scripts().items():
      array = re.search(r"--array=0-(\d+)", script)
      places = range(int(array[1]) + 1) if array else [None]
      for place in places:
        name = number if place is None else f"{number}_{place}"
        statuses[name] = self._job(number, place, script, stop_when)
        stop_when = None
        again = self._queue / f"{name}.again"
        if again.exists():
          again.unlink()
          statuses[name] = self._job(number, place, script, None)
    return statuses

  def _job(self, number, place, script, stop_when) -> int:
    field = lambda name: int(re.search(rf"--{name}=(\d+)", script)[1])
    own = {
      "SLURM_JOB_ID": number,
      "SLURM_NTASKS": str(field("nodes") * field("ntasks-per-node")),
      "SLURM_NODEID": "0",
      "SLURM_JOB_NUM_NODES": "1",
      "SLURM_JOB_NODELIST": "localhost",
    }
    if place is not None:
      own |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(place)}
    job = subprocess.Popen(
      ["bash", self._queue / f"{number}.sh"],
      env=os.environ | self.environment | own,
      start_new_session=True,
    )
    while job.poll() is None:
      if stop_when is not None and stop_when():
        for pid in _tasks(job.pid):
          os.kill(pid, signal.SIGUSR2)
        stop_when = None
      time.sleep(0.05)
    return job.returncode


def _tasks(session: int) -> list[int]:
  """The processes that srun started: submitit's."""
  found = subprocess.run(
    ["pgrep", "-s", str(session), "-f", "submitit.core._submit"],
    capture_output=True,
    text=True,
  )
  itself = [int(line) for line in found.stdout.split()]
  name = lambda pid: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
  return [pid for pid in itself if b"srun" not in name(pid)]
