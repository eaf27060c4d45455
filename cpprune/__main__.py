"""`python -m cpprune`: the same as the command `cpprune`."""

from cpprune.cli.main import run

if __name__ == "__main__":
    run()
