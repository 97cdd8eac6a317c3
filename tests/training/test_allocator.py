"""Memory that is freed is used again without new page faults, where the C library is glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource, torch
from edge_asr.training.allocator import keep_freed_memory
def count():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(10_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
first = count()
keep_freed_memory()
count()
print(first, count())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 100
    assert after < before / 20
