"""`cpprune prune` as a script, for launchers: accelerate launch launch/prune.py --config FILE."""

import sys

from cpprune.cli.main import run

if __name__ == "__main__":
    run(["prune", *sys.argv[1:]])
