"""`cpprune evaluate` as a script, for launchers: accelerate launch launch/evaluate.py --config FILE."""

import sys

from cpprune.cli.main import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
