"""Where clips come from: each module turns one kind of source into a `Source`."""
