"""`cpprune train` as a script, for launchers: accelerate launch launch/train.py --config FILE."""

import sys

from cpprune.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
