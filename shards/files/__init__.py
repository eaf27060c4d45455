"""Files on disk: atomic writes, locks, ownership and documents."""
