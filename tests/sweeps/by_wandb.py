"""What wandb itself makes of a sweep, for the tests: python by_wandb.py, with a JSON object as input.

It is given {"file": …} and prints {"config": what would be sent, "space": of its Optuna scheduler}; given
"arguments" and "id" too, it runs that trial as wandb's agent does, and prints also "words" and "status".

A process of its own, since wandb's agent changes the environment.
"""

import json
import sys

from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
from wandb.sdk.launch.sweeps.utils import load_sweep_config
from wandb.sdk.sweeps.scheduler.optuna import search_space_from_sweep_config
from wandb.wandb_agent import Agent, AgentProcess

asked = json.load(sys.stdin)
config = _validate_config_and_fill_distribution(load_sweep_config(asked["file"]))
varied = {name: spec for name, spec in config["parameters"].items() if "parameters" not in spec}
space = search_space_from_sweep_config(varied)
answer = {"config": config, "space": {name: repr(found) for name, found in space.items()}}

if "arguments" in asked:
    started = []
    start = AgentProcess.__init__

    def recorded(self, **arguments):
        started.append(arguments["command"])
        start(self, **arguments)

    AgentProcess.__init__ = recorded
    agent = Agent(api=None, queue=None)
    agent._sweep_command = config["command"]
    values = {name: {"value": value} for name, value in asked["arguments"].items()}
    command = {"type": "run", "run_id": asked["id"], "program": config["program"], "args": values}
    response = agent._process_command(command)
    assert "exception" not in response, response
    status = agent._run_processes[asked["id"]].wait()
    answer |= {"words": started[0], "status": status}
print(json.dumps(answer))
