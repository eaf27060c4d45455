"""What is left of the machine's memory, of control groups of both versions, and of a SLURM job's."""

import pytest

from cpprune.data.free_memory import available_memory

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """A machine with 8 GiB free and no limits; returns a function that writes more files."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write("proc/meminfo", f"MemTotal: 16777216 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    write("proc/self/cgroup", "0::/job/step\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    return tmp_path, write


def test_a_machine_without_limits(machine):
    assert available_memory(machine[0], {}) == 8 * GIB


def test_a_group_above_has_a_limit_and_files_in_cache_are_free(machine):
    root, write = machine
    group = "sys/fs/cgroup/job"
    write(f"{group}/memory.max", f"{3 * GIB}\n")
    write(f"{group}/memory.current", f"{2 * GIB}\n")
    write(f"{group}/memory.stat", f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\n")
    assert available_memory(root, {}) == 3 * GIB - 2 * GIB + GIB // 2 + GIB // 4
    write(f"{group}/memory.current", f"{9 * GIB}\n")
    assert available_memory(root, {}) == 0


def test_version_1(machine):
    root, write = machine
    write("proc/self/cgroup", "9:cpuset:/\n4:memory:/a/b\n0::/\n")
    group = "sys/fs/cgroup/memory/a/b"
    write(f"{group}/memory.limit_in_bytes", f"{4 * GIB}\n")
    write(f"{group}/memory.usage_in_bytes", f"{2 * GIB}\n")
    write(f"{group}/memory.stat", f"active_file 1\ntotal_active_file {GIB}\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{7 * GIB}\n")
    write("sys/fs/cgroup/memory/memory.stat", "")
    assert available_memory(root, {}) == 3 * GIB


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2 * GIB),
        ({"SLURM_MEM_PER_NODE": "0"}, 8 * GIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "6"}, 3 * GIB),
        ({"SLURM_MEM_PER_NODE": "999999"}, 8 * GIB),
        *(({"SLURM_MEM_PER_NODE": text}, 8 * GIB) for text in ("4G", "²", "", "9" * 5000)),
    ],
)
def test_slurm(machine, environment, expected):
    assert available_memory(machine[0], environment) == expected


def test_a_kernel_without_control_groups(machine):
    (machine[0] / "proc/self/cgroup").unlink()
    assert available_memory(machine[0], {}) == 8 * GIB


def test_this_machine():
    assert 0 < available_memory() < 1 << 50
