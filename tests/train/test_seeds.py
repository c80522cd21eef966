"""Random streams: what draws them may not change, or no record could be repeated."""

import itertools
import os
import subprocess
import sys

import torch

from stn.data.seeds import TEST_SEED, stream_seed


def test_the_streams_of_committed_records_stay_what_they_are():
    assert TEST_SEED == 20151
    assert stream_seed(0, "weights") == 4362053507750869513
    assert stream_seed(2, "train", 3) == 3248640432872762897
    assert stream_seed(TEST_SEED, "test/0", 1000) == 1657276357350741173


def test_streams_differ_between_seeds_purposes_and_indices():
    keys = list(itertools.product(range(20), ("train", "weights", "test/0", "test/1", "test/10"), range(20)))
    assert len({stream_seed(*key) for key in keys}) == len(keys)


def test_a_stream_seed_is_one_that_a_torch_generator_takes():
    seeds = [stream_seed(seed, "train", 0) for seed in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all 63 bits are used
    for seed in seeds:
        assert torch.Generator().manual_seed(seed).initial_seed() == seed


def test_neighbouring_streams_are_uncorrelated():
    def draw(index):
        return torch.randn(4000, generator=torch.Generator().manual_seed(stream_seed(0, "train", index)))

    draws = torch.stack([draw(index) for index in range(8)])
    correlations = torch.corrcoef(draws) - torch.eye(8)
    assert correlations.abs().max() < 0.1


def test_a_stream_does_not_depend_on_pythons_hash_seed():
    call = [sys.executable, "-c", "from stn.data.seeds import stream_seed; print(stream_seed(1, 'train', 5))"]
    outputs = {
        subprocess.run(call, env=os.environ | {"PYTHONHASHSEED": str(i)}, capture_output=True, check=True).stdout
        for i in (1, 2)
    }
    assert {int(output) for output in outputs} == {stream_seed(1, "train", 5)}
