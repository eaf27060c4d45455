"""Several processes as one: process group, collectives, DeepSpeed, watchdog and preemption."""
