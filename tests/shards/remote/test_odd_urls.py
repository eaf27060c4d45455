"""What looks like a URL and is none costs one line."""

import pytest

from cpprune.cli.main import main


@pytest.mark.parametrize("url", ["https://[::1", "http://[", "http://]x/", "https://[a]/x"])
@pytest.mark.parametrize("command", ["info", "verify"])
def test_no_url(capsys, url, command):
    assert main(["shards", command, url]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("cpprune: error: ")
    assert url in err
