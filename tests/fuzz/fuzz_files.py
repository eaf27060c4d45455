"""Files spoilt: bytes flipped, cut, replaced; wrong types in documents; a right seal on it."""

import csv
import gzip
import hashlib
import io
import json
import os
import random
import struct
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import fuzz_values
import yaml

DOCUMENTS = (".json", ".yaml", ".jsonl", ".log")
MOST_BYTES = 64 << 20  # more has only what was made huge before
TABLES = (".csv", ".tsv")


def spoil(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Change a file; return what was done to it.

    Args:
        rng: decides.
        path: of the file, which is replaced: what else is linked to its bytes keeps them.
        others: files that may take its place.
    """
    roll = rng.random()
    if roll < 0.15 or path.stat().st_size > MOST_BYTES:
        return _replace(rng, path, others)
    data = path.read_bytes()
    ways = {
        **{kind: partial(_spoil_document, kind=kind) for kind in DOCUMENTS},
        **dict.fromkeys(TABLES, _spoil_table),
        ".safetensors": _spoil_safetensors,
        ".parquet": _spoil_parquet,
        ".gz": _spoil_packed,
    }
    way = ways.get(path.suffix, _spoil_bytes) if roll >= 0.35 else _spoil_bytes
    try:
        how, data = way(rng, data)
    except Exception:  # it was spoilt before, so that it is none of its kind
        how, data = _spoil_bytes(rng, data)
    path.unlink()
    path.write_bytes(data)
    sealed = rng.random() < 0.7 and _seal(path)
    return f"{how}{', sealed again' if sealed else ''}"


def _replace(rng: random.Random, path: Path, others: list[Path]) -> str:
    small = [p for p in others if p != path and p.stat().st_size <= MOST_BYTES]
    other = rng.choice(small).read_bytes() if small else b""
    path.unlink()
    ways: dict[str, Callable[[], object]] = {
        "removed": lambda: None,
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a link to nowhere": lambda: path.symlink_to("nowhere"),
        "a link to itself": lambda: path.symlink_to(path.name),
        "empty": path.touch,
        "not to be read": lambda: (path.touch(), path.chmod(0)),
        "huge": lambda: (path.touch(), os.truncate(path, 1 << 36)),
        "zeros": lambda: path.write_bytes(bytes(10_000)),
        "/dev/zero": lambda: path.symlink_to("/dev/zero"),
        "/dev/full": lambda: path.symlink_to("/dev/full"),
    }
    if rng.random() < 0.3:
        path.write_bytes(other)
        return f"replaced by another file of {len(other)} bytes"
    how = rng.choice(list(ways))
    ways[how]()
    return f"made {how}"


def _spoil_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    at = rng.randrange(len(data) + 1)
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30))):
        if flipped:
            place = rng.choice((rng.randrange(len(flipped)), rng.randrange(min(64, len(flipped)))))
            flipped[place] ^= 1 << rng.randrange(8)
    ways = {
        "bits flipped": bytes(flipped),
        f"cut at {at}": data[:at],
        f"begins at {at}": data[at:],
        f"{at % 97} bytes put in at {at}": data[:at] + rng.randbytes(at % 97) + data[at:],
        f"zeros from {at}": data[:at] + bytes(min(1000, len(data) - at)) + data[at + 1000 :],
        "twice": data + data,
        "bytes at its end": data + b"\0\xff more",
        "a byte order mark": b"\xef\xbb\xbf" + data,
        "CRLF": data.replace(b"\n", b"\r\n"),
        "UTF-16": data.decode("latin-1").encode("utf-16"),
        "gzipped": gzip.compress(data),
        "noise": rng.randbytes(min(len(data), 5000)),
    }
    how = rng.choice(list(ways))
    return how, ways[how]


def _spoil_packed(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    how, data = _spoil_bytes(rng, gzip.decompress(data))
    return how, gzip.compress(data)


# --- documents ----------------------------------------------------------------------------------------


def _spoil_document(rng: random.Random, data: bytes, *, kind: str) -> tuple[str, bytes]:
    text = data.decode()
    if kind in (".jsonl", ".log"):
        return _spoil_lines(rng, text)
    if rng.random() < 0.15:
        return _spoil_text(rng, text)
    tree = json.loads(text) if kind == ".json" else yaml.safe_load(text)
    how, tree = spoil_tree(rng, tree)
    return how, _dump(tree, kind)


def _dump(tree: Any, kind: str) -> bytes:
    if kind == ".yaml":
        try:
            return yaml.safe_dump(tree, allow_unicode=True).encode()
        except (yaml.YAMLError, UnicodeEncodeError):
            pass
    try:
        return json.dumps(tree, indent=2).encode()
    except (ValueError, RecursionError):  # too many digits
        return b'{"epoch": 1' + b"0" * 5000 + b"}"


def _spoil_text(rng: random.Random, text: str) -> tuple[str, bytes]:
    first = text.find(":")
    ways = {
        "nested 100,000 deep": "[" * 100_000,
        "nested in a key": text[: first + 1] + "[" * 5000 + "]" * 5000 + text[first + 1 :],
        "a comma too many": text.replace("}", ",}"),
        "a key twice": text.replace("{", text[: text.find(",") + 1] or "{a: 1, a: 2,", 1),
        "text after its end": text + "\n]",
        "NaN": text.replace(": 1", ": NaN").replace(": 0", ": -Infinity"),
        "a number of 5,000 digits": text.replace(": 1", ": " + "1" * 5000),
        "half a character": text.replace('"', '"\\ud800', 3),
        "NUL": text.replace('"', '"\\u0000', 3),
        "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{n}: &{n} [{','.join(f'*{m}' for _ in range(9))}]\n"
            for m, n in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "a tag": "!!python/object/apply:os.getcwd []",
        "a list": "[1, 2, 3]",
        "a number": "5",
        "null": "null",
        "true": "true",
        "a text": '"text"',
        "{}": "{}",
        "blank": " \n\n",
        "two documents": text + "\n---\n" + text,
    }
    how = rng.choice(list(ways))
    return how, ways[how].encode()


def _spoil_lines(rng: random.Random, text: str) -> tuple[str, bytes]:
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    roll = rng.random()
    if roll < 0.6:
        try:
            how, tree = spoil_tree(rng, json.loads(lines[at]))
            lines[at] = json.dumps(tree)
        except ValueError:
            how, line = _spoil_bytes(rng, lines[at].encode())
            lines[at] = line.decode("latin-1")
    elif roll < 0.7:
        how = "removed"
        del lines[at]
    elif roll < 0.8:
        how = "there twice"
        lines.insert(at, lines[at])
    elif roll < 0.9:
        how, line = _spoil_text(rng, lines[at])
        lines[at] = line.decode()
    else:
        how = "mixed"
        rng.shuffle(lines)
    return f"line {at + 1}: {how}", ("\n".join(lines) + "\n").encode()


def spoil_tree(rng: random.Random, tree: Any) -> tuple[str, Any]:
    """Return a document with something wrong at one place, and what."""
    places = list(islice(_places(tree, ()), 10_000))  # aliases may repeat without end
    if not places or rng.random() < 0.03:
        wrong = fuzz_values.value(rng, tree)
        return f"is {wrong!r:.60}", wrong
    # Places near the top are more often chosen than there are of them.
    depth = rng.randint(1, max(len(place) for place in places))
    place = rng.choice([p for p in places if len(p) <= depth] or places)
    above = tree
    for step in place[:-1]:
        above = above[step]
    last, name = place[-1], ".".join(map(str, place))
    roll = rng.random()
    if roll < 0.7:
        above[last] = fuzz_values.value(rng, above[last])
        return f"{name} is {above[last]!r:.60}", tree
    if roll < 0.8:
        del above[last]
        return f"{name} removed", tree
    if roll < 0.9 and isinstance(above, dict):
        new = rng.choice(("other", "", f"{last}s", "__class__", "é", "a.b"))
        above[new] = above.pop(last)
        return f"{name} is called {new!r}", tree
    if isinstance(above, list):
        above.insert(0, above[last])
        return f"{name} there twice", tree
    deep: Any = above[last]
    for _ in range(rng.choice((1, 40, 300))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    above[last] = deep
    return f"{name} nested", tree


def _places(tree: Any, above: tuple[Any, ...]) -> Any:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs)[:200]:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*above, key))


# --- tables and tensors -------------------------------------------------------------------------------


def _spoil_table(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    text = data.decode()
    tab = "\t" if "\t" in text else ","
    rows = list(csv.reader(io.StringIO(text), delimiter=tab))
    at, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    roll = rng.random()
    if roll < 0.6:
        rows[at][column] = fuzz_values.word(rng, rows[at][column], tuple(map(str, rows[-1])))
        how = f"row {at}, column {column} is {rows[at][column]!r:.60}"
    elif roll < 0.7:
        rows = [row[:column] + row[column + 1 :] for row in rows]
        how = f"column {column} removed"
    elif roll < 0.8:
        rows[at] = rows[at][:column]
        how = f"row {at} ends before column {column}"
    elif roll < 0.9:
        rows.insert(at, rows[at])
        how = f"row {at} twice"
    else:
        rows = rows[:1]
        how = "only its head"
    out = io.StringIO()
    writer = csv.writer(out, delimiter=tab, lineterminator="\n")
    writer.writerows(rows)
    return how, out.getvalue().encode("utf-8", "surrogatepass")


def _spoil_safetensors(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    head, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.4:
        body = bytearray(body)
        at = rng.randrange(max(1, len(body) - 4))
        body[at : at + 4] = rng.choice((b"\0\0\xc0\x7f", b"\xff\xff\xff\xff", b"\0\0\x80\x7f"))
        return "a tensor has odd numbers", data[: 8 + length] + bytes(body)
    how, head = spoil_tree(rng, head)
    text = json.dumps(head).encode()
    lengths = (len(text), len(text), len(text), 2**63, 0, len(text) + 1)
    return f"head: {how}", struct.pack("<Q", rng.choice(lengths)) + text + body


def _spoil_parquet(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pq.read_table(io.BytesIO(data), use_threads=False).to_pydict()
    name = rng.choice(list(columns))
    cells = columns[name]
    at = rng.randrange(len(cells))
    wrong = fuzz_values.value(rng, cells[at])
    ways: dict[str, Callable[[], Any]] = {
        f"{name}[{at}] is {wrong!r:.60}": lambda: [*cells[:at], wrong, *cells[at + 1 :]],
        f"{name} is all {wrong!r:.60}": lambda: [wrong] * len(cells),
        f"{name} holds texts": lambda: [str(cell) for cell in cells],
        f"{name} holds nulls": lambda: [None] * len(cells),
        f"{name} holds lists": lambda: [[cell] for cell in cells],
        f"{name} backwards": lambda: cells[::-1],
        f"{name} removed": lambda: None,
        "no rows": lambda: cells[:0],
        "the first row only": lambda: cells[:1],
    }
    how = rng.choice(list(ways))
    new = ways[how]()
    if new is None:
        del columns[name]
    elif len(new) < len(cells):
        columns = {key: column[: len(new)] for key, column in columns.items()}
    else:
        columns[name] = new
    out = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), out)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError, ValueError):
        columns[name] = [repr(cell) for cell in new]
        pq.write_table(pa.table(columns), out)
    return how, out.getvalue()


# --- seals --------------------------------------------------------------------------------------------


def _seal(path: Path) -> bool:
    """Make the sums that cover a file right again; return whether there are any."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    dataset, model, sums = (
        path.with_name(n) for n in ("dataset.json", "model.json", "manifest.json")
    )
    try:
        if dataset.is_file():
            tree = json.loads(dataset.read_bytes())
            for entry in (tree["index"], *tree["shards"]):
                if entry["name"] == path.name:
                    entry["sha256"] = digest
                    entry["bytes"] = len(data)
            tree.pop("sha256", None)
            text = _canonical(tree)
            tree["sha256"] = hashlib.sha256(text).hexdigest()
            return _rewrite(dataset, _canonical(tree))
        if model.is_file() and path.name == "model.safetensors":
            tree = json.loads(model.read_bytes())
            tree["weights"]["sha256"] = digest
            return _rewrite(model, json.dumps(tree).encode())
        if sums.is_file() and path != sums:
            tree = json.loads(sums.read_bytes())
            tree[path.name] = digest
            return _rewrite(sums, json.dumps(tree).encode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return False


def _canonical(tree: Any) -> bytes:
    text = json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", "surrogatepass")


def _rewrite(path: Path, data: bytes) -> bool:
    path.unlink()
    path.write_bytes(data)
    return True
