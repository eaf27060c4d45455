"""Submissions to the DCASE challenge's task 1."""
