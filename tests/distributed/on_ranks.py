"""Processes that stay, so that a test on several ranks need not wait for torch to be imported.

Each holds one rank and takes jobs from its standard input, one JSON object a line: a command line of
`cpprune`, or a function of a test file to call inside a process group over gloo.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLong
from pathlib import Path
from typing import Any

# After which a hang is called one: far longer than a busy machine takes.
SECONDS = 600


class Ranks:
    """`world` processes; ends them all when one does not answer in time.

    Args:
        world: how many.
        free_port: returns a port to meet at.
    """

    def __init__(self, world, free_port):
        self.world = world
        self.free_port = free_port
        self.processes = []

    def start(self):
        # gloo on the CPU, whatever this machine has: two ranks cannot share a GPU.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(rank), str(self.world)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            for rank in range(self.world)
        ]

    def end(self):
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes = []

    def run(self, job):
        """Give every rank the job; return what each answers, in rank order."""
        if not self.processes:
            self.start()
        line = json.dumps({**job, "port": self.free_port()}) + "\n"
        for process in self.processes:
            process.stdin.write(line)
            process.stdin.flush()
        with ThreadPoolExecutor(self.world) as threads:
            answers = [threads.submit(process.stdout.readline) for process in self.processes]
            try:
                texts = [answer.result(timeout=SECONDS) for answer in answers]
            except TooLong:
                self.end()
                raise AssertionError(f"no answer in {SECONDS} s: the ranks wait for ever") from None
        if not all(texts):
            self.end()
            raise AssertionError("a rank died")
        return [json.loads(text) for text in texts]

    def cpprune(self, *arguments, status=0):
        """Run a command on all ranks; return {"status", "out", "err"} of each."""
        answers = self.run({"arguments": [str(argument) for argument in arguments]})
        for answer in answers:
            assert answer["status"] == status, answer["err"]
        return answers

    def call(self, function, *arguments, group=True):
        """Call `function(*arguments)` of a test file on all ranks; return each one's result.

        In a process group, unless the function makes its own.
        """
        name = f"{Path(sys.modules[function.__module__].__file__).stem}:{function.__name__}"
        answers = self.run({"function": name, "arguments": arguments, "group": group})
        for answer in answers:
            assert "error" not in answer, answer["error"]
        return [answer["result"] for answer in answers]


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job, on this rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
    if "function" not in job:
        from cpprune.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(job["arguments"])
        return {"status": status, "out": out.getvalue(), "err": err.getvalue()}

    import torch.distributed as dist

    module, name = job["function"].split(":")
    if job["group"]:
        dist.init_process_group("gloo")
        dist.barrier()  # none may leave while another is still joining
    try:
        return {"result": getattr(importlib.import_module(module), name)(*job["arguments"])}
    finally:
        if job["group"]:
            dist.destroy_process_group()


def serve(rank: str, world: str) -> None:
    """Answer jobs until there are no more."""
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world)
    # What libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    importlib.import_module("cpprune.training.loop")
    importlib.import_module("torch_pruning")
    sys.path.append(
        str(Path(__file__).parents[1])
    )  # what tests share; now, as it has a `shards` too
    gc.freeze()  # see `libraries` in tests/conftest.py
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception as error:
            import traceback

            found = {"status": -1, "err": traceback.format_exc(), "error": repr(error)}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
