"""A dataset behind a name and a password: they are used, and written and printed nowhere."""

import base64
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

SECRET, TOKEN = "s3cr3t", "t0k3n"


class _Guarded(SimpleHTTPRequestHandler):
    """Gives a file to who says the password, or has the token in the address."""

    def do_GET(self) -> None:
        told = self.headers["Authorization"] or ""
        wanted = f"Basic {base64.b64encode(f'anna:{SECRET}'.encode()).decode()}"
        if told != wanted and f"token={TOKEN}" not in self.path:
            self.send_error(401)
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def guarded(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address without what is secret."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("CPPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shards.remote.transfer.RETRY_DELAYS", (0.0, 0.0), raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Guarded, directory=scenes)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def addresses(guarded: str) -> dict[str, str]:
    return {
        "password": guarded.replace("://", f"://anna:{SECRET}@"),
        "token": f"{guarded}?token={TOKEN}",
    }


def written(folder: Path) -> list[Path]:
    """The files below a folder that hold something secret."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(word.encode() in path.read_bytes() for word in (SECRET, TOKEN))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["password", "token"])
def test_a_run_keeps_no_secrets(
    addresses: dict[str, str],
    guarded: str,
    kind: str,
    cli: Callable[..., Any],
    refused: Callable[..., str],
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, run = addresses[kind], tmp_path / "run"
    words = ["train", *tiny, "--train.epochs", "1", "--data.path", url, "--run", str(run)]
    monkeypatch.setattr("sys.argv", ["cpprune", *words])
    outcome = cli(*words)
    assert outcome.status == 0, outcome.err
    said = outcome.out + outcome.err
    assert SECRET not in said
    assert TOKEN not in said
    assert written(tmp_path) == []
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["path"] == guarded
    assert guarded in (run / "environment.json").read_text()
    report = (run / "report.html").read_text()
    assert guarded in report
    assert "cannot be reached" not in report  # the page after a training measures with the password

    # Without the password the recorded settings are refused with what to do; with it they train.
    shutil.rmtree(tmp_path / "cache")
    again = ["train", "--config", run / "config.yaml", "--run", tmp_path / "again"]
    refused(*again, names=[f"{guarded}/dataset.json", "401", "netrc"])
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login anna password {SECRET}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert cli(*again).status == 0
    assert written(tmp_path) == [tmp_path / "netrc"]


def test_commands_print_no_secrets(
    addresses: dict[str, str], guarded: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    for url in addresses.values():
        for outcome in (
            cli("shards", "info", url),
            cli("shards", "info", url, "--json"),
            cli("shards", "verify", url),
            cli(
                "shards", "verify", f"{url}/nothing" if "?" not in url else f"{guarded}/n?token=t0"
            ),
            cli(
                "train", "--data.path", f"{url}&x", "--train.epochs", "-1", "--run", tmp_path / "r"
            ),
            cli("train", "--data.pth", url),
        ):
            assert guarded in outcome.out or outcome.status == 2
            for word in (SECRET, TOKEN, "t0"):
                assert word not in outcome.out + outcome.err
    assert written(tmp_path) == []


def test_reports_of_older_runs_show_no_secrets(
    tiny_run: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["path"] = f"nope://anna:{SECRET}@host/d"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = (run / "environment.json").read_text()
    (run / "environment.json").write_text(
        text.replace('"command": [', f'"command": ["x", "--data.path=s3://a:{SECRET}@b/c",')
    )
    outcome = cli("report", run)
    assert outcome.status == 0, outcome.err
    assert SECRET not in outcome.out + outcome.err + (run / "report.html").read_text()
