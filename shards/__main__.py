"""`python -m shards`: the same commands as `cpprune shards`."""

import sys

from shards.cli.command import run_command
from shards.cli.main import main

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:]), debug="--debug" in sys.argv))
