"""`cpprune train` as a script, for launchers: accelerate launch launch/train.py --config FILE."""

import sys

from cpprune.cli.main import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
