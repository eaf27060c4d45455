"""`cpprune prune` as a script, for launchers: accelerate launch launch/prune.py --config FILE."""

import sys

from cpprune.cli import main

if __name__ == "__main__":
    sys.exit(main(["prune", *sys.argv[1:]]))
