"""Credentials in URLs: used for fetching, never printed or stored.

Printed text goes through `without_credentials`, as the message of every UserError does; recorded
settings and command lines go through `recorded`.
"""

import base64
import netrc
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

# User and password before the host, also where the password has a slash that should have been written
# as %2F; and the query, which holds signatures and tokens. Bounded, so that matching stays fast.
_BEFORE_HOST = re.compile(
    r"://(?:[^\s/?#'\"]{0,1024}@"
    r"|[^\s/?#:'\"]{0,256}:(?!\d{0,5}(?:[/?#\s'\"]|$))[^\s'\"]{0,1024}@)"
)
_QUERY = re.compile(r"(://[^\s?'\"]{0,2048})\?[^\s'\"=]{1,256}=[^\s'\"]*")


def without_credentials(text: str) -> str:
    """Returns a text without the user names, passwords and queries of its URLs."""
    return _QUERY.sub(r"\1", _BEFORE_HOST.sub("://", text)) if "://" in text else text


def recorded(value: object) -> Any:
    """Returns a copy of a JSON-like value without the credentials in its strings."""
    if isinstance(value, dict):
        return {key: recorded(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [recorded(held) for held in value]
    return without_credentials(value) if isinstance(value, str) else value


def file_in(url: str, name: str) -> str:
    """Returns the URL of a file in a folder; the query of the folder's URL stays at the end."""
    if not url.startswith(("http://", "https://")):
        return f"{url.rstrip('/')}/{name}"
    # urlsplit would raise ValueError here; whether the URL is valid is reported when it is fetched.
    path, mark, query = url.partition("#")[0].partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def authorization(url: str) -> tuple[str, str | None]:
    """Returns an http URL without credentials, and the value of its Authorization header or None.

    Credentials come from the URL, or else from `~/.netrc` (or `$NETRC`).

    Raises:
        ValueError: the URL is invalid.
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
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {encoded}"


def _from_netrc(host: str) -> tuple[str, str] | None:
    path = Path(os.environ.get("NETRC") or "~/.netrc")
    try:
        found = netrc.netrc(path.expanduser()).hosts.get(host)  # the default entry is not used
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError, RuntimeError):
        return None
    return (found[0], found[2] or "") if found else None
