"""A model in C on an emulated Cortex-M: its test program gets torch's logits there too."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from export_jobs import job_of
from programs import required

from cpprune.export.target import targets

pytestmark = pytest.mark.slow

STARTUP = Path(__file__).parents[1] / "cortex_m"


@dataclass(frozen=True)
class Board:
    """A board that QEMU emulates.

    Attributes:
        machine: QEMU's name of it.
        options: of the compiler, for its processor.
        memory: its regions for code and data, as the linker writes them.
    """

    machine: str
    options: tuple[str, ...]
    memory: str


BOARDS = {
    "cortex-m4": Board(
        "mps2-an386",
        ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
        "CODE : ORIGIN = 0, LENGTH = 4M  RAM : ORIGIN = 0x20000000, LENGTH = 4M",
    ),
    "cortex-m7": Board(
        "mps2-an500",
        ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
        "CODE : ORIGIN = 0, LENGTH = 4M  RAM : ORIGIN = 0x20000000, LENGTH = 4M",
    ),
    "cortex-m55": Board(
        "mps3-an547",
        ("-mcpu=cortex-m55", "-mfloat-abi=hard"),
        "CODE : ORIGIN = 0, LENGTH = 512K  RAM : ORIGIN = 0x21000000, LENGTH = 4M",
    ),
}


@pytest.fixture(scope="module")
def folders(exported, tmp_path_factory):
    """Returns the folder of a model in C, by its precision."""
    made = exported("small")
    found = {}
    for precision in ("fp32", "int8"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cpprune.export.network.export_network", lambda *_: made.network)
            product = targets()["c"].make(job_of(made.model, precision=precision))
        found[precision] = tmp_path_factory.mktemp(precision)
        for name, data in product.files.items():
            (found[precision] / name).write_bytes(data)
    return found


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", BOARDS)
def test_the_test_program_on_a_board(folders, name, precision, tmp_path):
    compiler = required("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    emulator = required("qemu-system-arm", "qemu-system-arm")
    board, folder = BOARDS[name], folders[precision]
    script = f"MEMORY {{ {board.memory} }}\n{(STARTUP / 'board.ld').read_text()}"
    (tmp_path / "board.ld").write_text(script)
    options = ("-std=c99", "-Os", "-Wall", "-mthumb", "--specs=rdimon.specs", "-T", "board.ld")
    sources = [STARTUP / "start.c", *sorted(set(folder.glob("*.c")) - {folder / "listen.c"})]
    program = tmp_path / "model.elf"
    subprocess.run(
        [compiler, *options, *board.options, f"-I{folder}", "-o", program, *sources, "-lm"],
        cwd=tmp_path,
        check=True,
    )
    semihosting = ("-semihosting-config", "enable=on,target=native")
    quiet = ("-nographic", "-monitor", "none", "-serial", "none")
    done = subprocess.run(
        [emulator, "-M", board.machine, *quiet, *semihosting, "-kernel", program],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "passed"
