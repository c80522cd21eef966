import resource
import subprocess
import sys

import pytest

LOOP = """
import resource, torch
{first}
for i in range(40):
    if i == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 48_000_000 // resource.getpagesize()  # of one tensor


def faults(first: str) -> int:
    code = LOOP.format(first=first)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_memory_of_a_large_tensor_is_used_again():
    by_itself = faults("")
    if by_itself < 5 * PAGES:
        pytest.skip("this allocator keeps it by itself")
    kept = "from stn.train.memory import *; keep_freed_memory()"
    assert faults(kept) < by_itself / 2
    assert faults(f"{kept}; return_freed_memory()") > by_itself / 2
