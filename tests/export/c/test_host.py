"""The C compiler of this machine, as make takes it from CC."""

import shutil

import pytest

from cpprune.export.c import host

SOURCES = {"one.c": "const int one[2] = {1, 2};\n"}


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (None, ("cc",)),
        (" ", ("cc",)),
        ("cc -O2", ("cc", "-O2")),
        ("env LANG=C cc", ("env", "LANG=C", "cc")),
    ],
)
def test_what_compiles(monkeypatch, given, command):
    monkeypatch.delenv("CC", raising=False)
    if given is not None:
        monkeypatch.setenv("CC", given)
    assert host.host_compiler() == command
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if "arm" in name else real(name))
    found = host.sizes(SOURCES)
    assert found["flash"] >= 8
    assert found["compiler"].startswith(" ".join(command))


@pytest.mark.parametrize("given", ["no-such-compiler -O2", 'cc "'])
def test_what_does_not(monkeypatch, given):
    monkeypatch.setenv("CC", given)
    assert host.host_compiler() is None
