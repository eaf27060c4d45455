"""Datasets on other machines: fetching, caching and downloading."""
