"""Arguments: numbers that are none, and one line for a mistake, whichever command it is."""

import argparse

import pytest

from shards.cli.arguments import number, whole_number

pytestmark = pytest.mark.usefixtures("elsewhere")

NO_WHOLE_NUMBERS = ["²", "٣", "1_0", "", " 1", "0x10", "1.0", "1e3", "nan", str(2**63), "9" * 5000]
NO_NUMBERS = ["²", "٣", "1_0.5", "", "nan", "inf", "-Infinity", "1e400", "1,5"]


@pytest.mark.parametrize("text", NO_WHOLE_NUMBERS, ids=lambda text: text[:20])
def test_no_whole_number(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no whole number"):
        whole_number(text)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_no_number(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no finite number"):
        number(text)


def test_numbers():
    assert [whole_number(text) for text in ("0", "-7", "+12", str(2**63 - 1))] == [
        0,
        -7,
        12,
        2**63 - 1,
    ]
    assert [number(text) for text in ("0", "-7.5", "1e3", ".5")] == [0, -7.5, 1000, 0.5]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["shards", "synth", "--out", "o"], "--clips"),
        (["shards", "build", "folder", "--source", "s", "--out", "o"], "--workers"),
        (["shards", "build", "folder", "--source", "s", "--out", "o"], "--seconds"),
        (["shards", "build", "folder", "--source", "s", "--out", "o"], "--fractions"),
        (["demo"], "--clips"),
        (["report", "run"], "--mistakes"),
        (["sensitivity", "model", "--data", "data"], "--clips"),
        (["sweep", "sweep.yaml"], "--trials"),
        (["import", "state.pth", "--out", "model"], "--rho"),
    ],
)
def test_every_command_refuses_what_is_no_number(refused, tmp_path, command, option):
    for text in ("²", "٣", "1_0", "nan", "1e400", "9" * 5000):
        refused(*command, f"{option}={text}", names=[option])
    refused(*command, f"{option}=--", names=[option, "expected one argument"])
    assert not any(tmp_path.iterdir())


def test_a_column_that_is_no_text(refused, tmp_path):
    build = ["shards", "build", "mnist", "--source", "s", "--out", "o"]
    for option in ("--filename-column", "--label-column", "--split-column"):
        refused(*build, f"{option}=caf\udce9", names=[option, "UTF-8"])
        refused(*build, f"{option}=a\0b", names=[option, "NUL"])
    assert not any(tmp_path.iterdir())
