"""How many threads a process may run at once, from files that the kernel would write."""

import os

import pytest
from longcat import _core
from longcat import _testing as testing

from support.system_files import write_system


def version2(group, text):
    return {f"sys/fs/cgroup/{group}cpu.max": f"{text}\n"}


def version1(group, quota, period=100000):
    files = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period}
    return {f"sys/fs/cgroup/cpu/{group}{name}": f"{value}\n" for name, value in files.items()}


SERVICE = {"proc/self/cgroup": "0::/system.slice/a.service\n"}
MACHINES = {  # files, expected of 8 processors
    "no group": ({}, 8),
    "version 2, unlimited": (version2("", "max 100000"), 8),
    "version 2, a container": (version2("", "300000 100000"), 3),
    "version 2, a part of a processor more": (version2("", "290000 100000"), 2),
    "version 2, less than a processor": (version2("", "50000 100000"), 1),
    "version 2, more than there are": (version2("", "6400000 100000"), 8),
    "version 2, another period": (version2("", "20000 10000"), 2),
    "version 2, a service": (SERVICE | version2("system.slice/a.service/", "400000 100000"), 4),
    "version 2, the group around it": (
        SERVICE | version2("system.slice/", "200000 100000") | version2("system.slice/a.service/", "max 100000"), 2),
    "version 2, a group of others": ({"proc/self/cgroup": "0::/mine\n"} | version2("others/", "100000 100000"), 8),
    "version 2, others whose group has the controller's name": (
        version2("", "max 100000") | version2("cpu/", "100000 100000"), 8),
    "version 2, no text": (version2("", ""), 8),
    "version 1, unlimited": (version1("", -1), 8),
    "version 1, a container": (version1("", 250000), 2),
    "version 1, a group": (
        {"proc/self/cgroup": "5:cpu,cpuacct:/batch/job\n"} | version1("", -1) | version1("batch/", 500000), 5),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_threads_of(tmp_path, name):
    files, expected = MACHINES[name]
    write_system(tmp_path, files)
    assert testing.available_threads(str(tmp_path)) == min(expected, len(os.sched_getaffinity(0)))


def test_threads_of_this_machine():
    assert 1 <= _core.available_threads() <= len(os.sched_getaffinity(0))
