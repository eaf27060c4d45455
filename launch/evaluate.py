"""`cpprune evaluate` as a script, for launchers: accelerate launch launch/evaluate.py --config FILE."""

import sys

from cpprune.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
