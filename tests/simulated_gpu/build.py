"""Builds the simulated CUDA runtime, and says in which environment Python processes see its GPU.

    eval "$(python tests/simulated_gpu/build.py FOLDER)"; python …

It is PyTorch itself over a CUDA runtime without a device: `torch.cuda.is_available()` is true, and what
is computed is right, but nothing here is a GPU's speed. It needs gcc, and a torch that was built for
CUDA.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
SITE = Path(sysconfig.get_path("purelib"))


def why_not() -> str:
    """Return what is missing to build it; empty if nothing is."""
    if shutil.which("gcc") is None:
        return "needs gcc"
    headers = SITE / "nvidia/cu13/include/cuda_runtime_api.h"
    return "" if headers.exists() else f"needs torch for CUDA 13 with its headers ({headers})"


def build(folder: Path) -> Path:
    """Compile the runtime into a folder and return the library.

    Raises:
        RuntimeError: gcc fails; the message is what it printed.
    """
    include = folder / "include"
    include.mkdir(parents=True, exist_ok=True)
    crt = include / "crt"
    if not crt.exists():  # torch's wheels lack this part of the headers; Triton has it
        crt.symlink_to(SITE / "triton/backends/nvidia/include/crt")
    library = folder / "libsimulatedcudart.so"
    driver = folder / "libcuda.so.1"
    if not driver.is_symlink():
        driver.symlink_to(library.name)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-fvisibility=hidden"]
    command += [f"-I{SITE / 'nvidia/cu13/include'}", f"-I{include}", "-o", str(library)]
    done = subprocess.run(
        [*command, str(HERE / "cudart.c"), "-lpthread"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"tests/simulated_gpu/cudart.c does not compile:\n{done.stderr}")
    return library


def environment(library: Path) -> dict[str, str]:
    """Return the variables under which Python processes see the simulated GPU."""
    root = HERE.parent.parent
    return {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(library.parent),
        "SIMULATED_GPU": str(library),
        "PYTHONPATH": os.pathsep.join(
            [str(HERE), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "1",
    }


if __name__ == "__main__":
    for name, value in environment(build(Path(sys.argv[1]).absolute())).items():
        print(f"export {name}='{value}'")
