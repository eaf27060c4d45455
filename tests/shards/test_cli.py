import json
import subprocess
import sys
from pathlib import Path

import pytest

from shards import UserError
from shards.cli.main import main
from shards.log import printed_log


def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(tmp_path / "s"), str(tmp_path / "d")
    assert main(["synth", "--out", source, "--clips", "200", "--workers", "1"]) == 0
    build = ["build", "tau2022", "--source", source, "--out", out, "--workers", "1"]
    capsys.readouterr()
    assert main([*build, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["files"] == 200
    assert plan["splits"]["test"]["count"] == 50
    assert not Path(out).exists()
    assert main([*build, "--dry-run"]) == 0
    with printed_log():
        assert main(build) == 0
    written = capsys.readouterr()
    assert "Writing clips: 200 of 200" in written.err
    assert "is complete" in written.out
    assert sum(path.stat().st_size for path in Path(out).glob("*.tar")) == pytest.approx(
        plan["bytes"], rel=0.01
    )
    assert main([*build, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["test"] == 50
    assert main(["info", out, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["clips"] == 200
    assert info["hours"] == pytest.approx(200 / 3600, abs=1e-4)
    assert info["sample_rate"] == 32000
    assert sum(info["splits"]["test"]["per_device"].values()) == 50
    assert main(["info", out]) == 0
    assert "per device: a" in capsys.readouterr().out
    assert main(["verify", out]) == 0
    assert capsys.readouterr().out == f"{out} is whole\n"

    shard = Path(out) / "test-000000.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    assert main(["verify", out]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("test-000000.tar: payload of ")
    assert lines[1:] == [f"{out}: 1 problem"]
    assert main(["verify", out, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["whole"], found["count"]) == (False, 1)
    assert found["problems"][0]["file"] == "test-000000.tar"


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        main(["verify", str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="--workers is 0"):
        main(["synth", "--out", str(tmp_path / "s"), "--clips", "200", "--workers", "0"])
    with pytest.raises(UserError, match=r"esc50.*see cpprune shards build --help"):
        main(["build", "esc50", "--source", "x", "--out", "y"])
    command = [sys.executable, "-m", "shards", "info", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("cpprune: error: no dataset at ")
    assert done.stderr.count("\n") == 1
