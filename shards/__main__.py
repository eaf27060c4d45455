"""`python -m shards`: the same commands as `cpprune shards`."""

import sys

from shards.cli import main
from shards.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:]), debug="--debug" in sys.argv))
