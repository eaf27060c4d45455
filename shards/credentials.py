"""Names and passwords in URLs: used to fetch, and neither printed nor written down."""

import base64
import netrc
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

# What precedes a host, also where a password holds a slash that should have been written as %2F; and
# the query of a URL, which is where signatures and tokens are.
_BEFORE_HOST = re.compile(r"://(?:[^\s/?#'\"]*@|[^\s/?#:'\"]*:(?!\d*(?:[/?#\s'\"]|$))[^\s'\"]*@)")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*=[^\s'\"]*")


def without_credentials(text: str) -> str:
    """Returns a text with its URLs bare of names, passwords and queries."""
    return _QUERY.sub(r"\1", _BEFORE_HOST.sub("://", text)) if "://" in text else text


def file_in(url: str, name: str) -> str:
    """Returns the URL of a file in a folder; the folder's query stays at the end."""
    if not url.startswith(("http://", "https://")):
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


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
