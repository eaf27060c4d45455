"""The training loop, its step and what the step is made of."""
