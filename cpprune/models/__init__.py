"""Network families and how to build one by name."""
