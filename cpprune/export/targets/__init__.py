"""Export targets, one per module: what a model folder can be exported to.

How to add one is in `cpprune.export.target`.
"""
