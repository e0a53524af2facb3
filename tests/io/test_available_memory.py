"""What memory a process may still take, from files that the kernel would write."""

import pytest
from longcat import _core
from longcat import _testing as testing

from support.system_files import write_system

MIB = 1 << 20
MEMINFO = {"proc/meminfo": f"MemTotal: {1 << 20} kB\nMemFree: 7 kB\nMemAvailable: {900 << 10} kB\nSwapFree: 0 kB\n"}
STAT = f"anon {50 * MIB}\nfile {140 * MIB}\ninactive_file {100 * MIB}\nactive_file {20 * MIB}\n"


def version2(group, limit, used, stat=STAT):
    files = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}
    return {f"sys/fs/cgroup/{group}{name}": text for name, text in files.items() if text}


def version1(group, limit, used):
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {30 * MIB}\ntotal_active_file {10 * MIB}\n"
    files = {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}
    return {f"sys/fs/cgroup/memory/{group}{name}": text for name, text in files.items()}


MACHINES = {  # files, expected [MiB]
    "no group": (MEMINFO, 900),
    "nothing is told": ({}, 4096),
    "version 2, unlimited": (MEMINFO | version2("", "max", 200 * MIB), 900),
    "version 2, a container": (MEMINFO | version2("", 512 * MIB, 200 * MIB), 512 - (200 - 120)),
    "version 2, no statistics": (MEMINFO | version2("", 512 * MIB, 200 * MIB, None), 312),
    "version 2, more than the machine has free": (MEMINFO | version2("", 4096 * MIB, 200 * MIB), 900),
    "version 2, full": (MEMINFO | version2("", 100 * MIB, 300 * MIB), 0),
    "version 2, no meminfo": (version2("", 512 * MIB, 200 * MIB), 432),
    "version 2, a service": (
        MEMINFO | {"proc/self/cgroup": "0::/system.slice/a.service\n"}
        | version2("system.slice/a.service/", 400 * MIB, 130 * MIB), 390),
    "version 2, the group around it": (
        MEMINFO | {"proc/self/cgroup": "0::/system.slice/a.service\n"} | version2("system.slice/", 300 * MIB, 220 * MIB)
        | version2("system.slice/a.service/", "max", 130 * MIB), 200),
    "version 2, a group of others": (
        MEMINFO | {"proc/self/cgroup": "0::/mine\n"} | version2("others/", MIB, MIB), 900),
    "version 2, others whose group has the controller's name": (
        MEMINFO | version2("", "max", 200 * MIB) | version2("memory/", MIB, MIB), 900),
    "version 1, unlimited": (MEMINFO | version1("", 9223372036854771712, 90 * MIB), 900),
    "version 1, a container": (
        MEMINFO | {"proc/self/cgroup": "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n"}
        | version1("", 512 * MIB, 90 * MIB), 462),
    "version 1, a group": (
        MEMINFO | {"proc/self/cgroup": "3:hugetlb,memory:/batch/job\n0::/\n"} | version1("", 9223372036854771712, 0)
        | version1("batch/", 500 * MIB, 140 * MIB), 400),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_memory_of(tmp_path, name):
    files, expected = MACHINES[name]
    write_system(tmp_path, files)
    assert testing.available_memory(str(tmp_path)) == expected * MIB


def test_memory_of_this_machine():
    with open("/proc/meminfo") as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal:"))
    assert 0 < _core.available_memory() <= total
