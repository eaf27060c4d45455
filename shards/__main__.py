"""`python -m shards`: the same commands as `cpprune shards`."""

import sys

from shards.cli import main
from shards.errors import InputError

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"cpprune: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
