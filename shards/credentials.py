"""Names and passwords in URLs: used to fetch, and neither printed nor written down.

What is printed goes through `without_credentials`, as the message of every UserError does; what is
written down of a user's settings and words, through `recorded`.
"""

import base64
import netrc
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

# What precedes a host, also where a password holds a slash that should have been written as %2F; and
# the query of a URL, which is where signatures and tokens are. Bounded, so that no text takes long.
_BEFORE_HOST = re.compile(
    r"://(?:[^\s/?#'\"]{0,1024}@"
    r"|[^\s/?#:'\"]{0,256}:(?!\d{0,5}(?:[/?#\s'\"]|$))[^\s'\"]{0,1024}@)"
)
_QUERY = re.compile(r"(://[^\s?'\"]{0,2048})\?[^\s'\"=]{1,256}=[^\s'\"]*")


def without_credentials(text: str) -> str:
    """Returns a text with its URLs bare of names, passwords and queries."""
    return _QUERY.sub(r"\1", _BEFORE_HOST.sub("://", text)) if "://" in text else text


def recorded(value: Any) -> Any:
    """Returns what may be written down of a value, or of all that a dict or list holds."""
    if isinstance(value, dict):
        return {key: recorded(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [recorded(held) for held in value]
    return without_credentials(value) if isinstance(value, str) else value


def file_in(url: str, name: str) -> str:
    """Returns the URL of a file in a folder; the folder's query stays at the end."""
    if not url.startswith(("http://", "https://")):
        return f"{url.rstrip('/')}/{name}"
    # Not by urlsplit: whether it is a URL at all is said by who fetches it.
    path, mark, query = url.partition("#")[0].partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def authorization(url: str) -> tuple[str, str | None]:
    """Returns an http URL without name and password, and the header that says them.

    Where the URL has none, `~/.netrc` (or `$NETRC`) may.

    Raises:
        ValueError: the URL is none.
    """
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    if at:
        user, password = unquote(user), unquote(password)
    elif found := _from_netrc(parts.hostname or ""):
        user, password = found
    else:
        return url, None
    told = base64.b64encode(f"{user}:{password}".encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {told}"


def _from_netrc(host: str) -> tuple[str, str] | None:
    path = Path(os.environ.get("NETRC") or "~/.netrc")
    try:
        found = netrc.netrc(path.expanduser()).hosts.get(host)  # what is for all hosts is for none
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError, RuntimeError):
        return None
    return (found[0], found[2] or "") if found else None
