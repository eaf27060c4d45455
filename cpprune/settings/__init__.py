"""What the settings of all rooms share: their choices, and the names that they had before."""
