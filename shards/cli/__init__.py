"""The command line of datasets."""
