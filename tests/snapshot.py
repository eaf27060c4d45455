"""What lies in a folder, to see that nothing there was touched."""

import stat
from pathlib import Path


def snapshot(folder: Path) -> dict[str, object]:
    """Return everything below a folder: the bytes of files, the aims of links, the kind of all else."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = ("link", str(path.readlink()))
        elif stat.S_ISREG(mode):
            found[name] = (path.read_bytes(), stat.S_IMODE(mode))
        else:
            found[name] = stat.S_IFMT(mode)
    return found


def fill(folder: Path, *names: str) -> Path:
    """Write files that nobody could make again; return their folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"years of work: {name}")
    return folder
