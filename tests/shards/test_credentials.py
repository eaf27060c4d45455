"""Which URLs hold secrets, and what is left of them."""

import base64
from pathlib import Path

import pytest

from shards import UserError
from shards.credentials import authorization, file_in, recorded, without_credentials


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://anna:secret@host/d", "https://host/d"),
        ("https://anna:secret@host:8080/d", "https://host:8080/d"),
        ("https://secret@host", "https://host"),
        ("https://anna:se@cret@host/d", "https://host/d"),
        ("https://anna:sec/ret@host/d", "https://host/d"),  # not written as %2F
        ("https://anna:sec?ret@host/d", "https://host/d"),
        ("--data.path=https://anna:secret@host/d", "--data.path=https://host/d"),
        ("https://host/d?token=secret&x=1", "https://host/d"),
        ("https://anna:secret@host/d?sig=secret", "https://host/d"),
        ("simplecache::ftp://anna:secret@host/d", "simplecache::ftp://host/d"),
        ("s3://key:secret@bucket/d", "s3://bucket/d"),
        ("at https://a:secret@h/x, and https://b:secret@h/y", "at https://h/x, and https://h/y"),
        ("url='https://h/x?sig=secret'; again", "url='https://h/x'; again"),
        # Nothing to hide:
        ("https://host/d", "https://host/d"),
        ("https://host:8080/a@b/d", "https://host:8080/a@b/d"),
        ("s3://bucket/a@b/c?d", "s3://bucket/a@b/c?d"),
        ("file:///home/a@b/d", "file:///home/a@b/d"),
        ("anna@host: is it so?", "anna@host: is it so?"),
    ],
)
def test_what_is_left_of_a_text(text: str, left: str) -> None:
    assert without_credentials(text) == left
    assert str(UserError(text)) == left
    assert recorded({"a": [text, 1, None], "b": {"c": text}}) == {
        "a": [left, 1, None],
        "b": {"c": left},
    }


def test_a_long_text_takes_no_time() -> None:
    for piece in ("://a:b", "://", "x@", "://?", "://?a"):
        without_credentials(piece * 20_000)


def test_a_file_comes_before_the_query() -> None:
    assert file_in("https://host/d/?sig=x", "a.tar") == "https://host/d/a.tar?sig=x"
    assert file_in("https://host/d", "{name}") == "https://host/d/{name}"
    assert file_in("s3://bucket/d?", "a.tar") == "s3://bucket/d?/a.tar"


def test_names_and_passwords_come_from_the_address_or_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def basic(text: str) -> str:
        return f"Basic {base64.b64encode(text.encode()).decode()}"

    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert authorization("https://host/d") == ("https://host/d", None)
    told = authorization("https://a%40b:x%2Fy@host:1/d?q=1")
    assert told == ("https://host:1/d?q=1", basic("a@b:x/y"))
    (tmp_path / "netrc").write_text(
        "machine host login anna password secret\ndefault login a password b\n"
    )
    (tmp_path / "netrc").chmod(0o600)
    assert authorization("https://host:1/d") == ("https://host:1/d", basic("anna:secret"))
    assert authorization("https://other/d") == ("https://other/d", None)
