"""What wandb makes of sweeps, for the tests; a process of its own, as wandb changes its environment.

It is given a list of objects and prints one for each. `file` is a sweep: `config` is what would be sent
to the server, `space` what wandb's scheduler would give Optuna. With `arguments` and `id` of a trial,
`words` is the command of wandb's agent; with `start` too, it is run, and ends with `status`.
"""

import json
import sys

from wandb import wandb_agent
from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
from wandb.sdk.launch.sweeps.utils import load_sweep_config
from wandb.sdk.sweeps.scheduler.optuna import search_space_from_sweep_config


class Recorded(wandb_agent.AgentProcess):
    """Notes the command that the agent starts, and may leave it at that."""

    start = True

    def __init__(self, **arguments):
        self.words = arguments["command"]
        if self.start:
            super().__init__(**arguments)


def run(config, asked):
    agent = wandb_agent.Agent(api=None, queue=None)
    agent._sweep_command = config["command"]
    values = {name: {"value": value} for name, value in asked["arguments"].items()}
    command = {"type": "run", "run_id": asked["id"], "program": config["program"], "args": values}
    Recorded.start = asked.get("start", False)
    response = agent._process_command(command)
    assert "exception" not in response, response
    process = agent._run_processes[asked["id"]]
    status = process.wait() if Recorded.start else None
    return {"words": process.words, "status": status}


def answer(asked):
    config = _validate_config_and_fill_distribution(load_sweep_config(asked["file"]))
    varied = {name: spec for name, spec in config["parameters"].items() if "parameters" not in spec}
    space = search_space_from_sweep_config(varied)
    found = {"config": config, "space": {name: repr(kind) for name, kind in space.items()}}
    return found | (run(config, asked) if "arguments" in asked else {})


wandb_agent.AgentProcess = Recorded
print(json.dumps([answer(asked) for asked in json.load(sys.stdin)]))
