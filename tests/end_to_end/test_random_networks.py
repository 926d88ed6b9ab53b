"""Two hundred random networks: torch, float IR, integer reference and machine agree on every one."""

from __future__ import annotations

import dataclasses

import pytest
from tests.end_to_end.harness import compile_and_check
from tests.generators.random_network import random_network

from escc.driver import CompileOptions
from escc.isa.arch import Arch

CASES = 200

OPTIONS = (
    CompileOptions(bases=4, penalty=0.05, planes=3),
    CompileOptions(bases=3, penalty=0.2, planes=0),
    CompileOptions(dense=True),
    CompileOptions(bases=6, penalty=0.0, planes=5, shrink=False),
)

SRAM_KIB = (512, 64, 24)


@pytest.mark.parametrize("seed", range(CASES))
def test_random_network(seed: int) -> None:
    model, shape = random_network(seed)
    arch = dataclasses.replace(Arch.default(), sram_kib=SRAM_KIB[seed % len(SRAM_KIB)])
    compile_and_check(model, shape, options=OPTIONS[seed % len(OPTIONS)], arch=arch, seed=seed)
