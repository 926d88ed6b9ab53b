"""Work beside the running thread: everything is done, in order, and failures come back."""

from __future__ import annotations

import threading

import pytest
from tests.backend_sim.simulator.networks import network
from tests.backend_sim.timing.engines import native_is_there

from escc.backend_sim.simulator import random_images, simulate
from escc.backend_sim.simulator.background import MOST_WAITING, Background
from escc.backend_sim.simulator.timing.native import NativeEngine
from escc.errors import EsccError


def test_results_in_order_and_from_another_thread() -> None:
    seen: list[int] = []
    with Background() as background:
        # more than may wait: whoever asks for more waits for room
        results = [background.run(lambda i=i: seen.append(i) or i * i) for i in range(3 * MOST_WAITING)]
        thread = background.run(threading.get_ident)
        assert [result() for result in results] == [i * i for i in range(3 * MOST_WAITING)]
        assert thread() != threading.get_ident()
    assert seen == list(range(3 * MOST_WAITING))


def test_a_failure_is_raised_where_the_result_is_asked_for() -> None:
    with Background() as background:
        failing = background.run(lambda: 1 // 0)
        after = background.run(lambda: 7)
        assert after() == 7
        with pytest.raises(ZeroDivisionError):
            failing()


def test_the_thread_ends_with_its_block_whatever_happens() -> None:
    def give_up() -> None:
        with Background() as background:
            background.run(lambda: 1)
            raise RuntimeError("given up")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="given up"):
        give_up()
    assert threading.active_count() == before


@pytest.mark.skipif(not native_is_there(), reason="escc was installed without a compiler")
def test_what_fails_beside_the_run_names_its_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise EsccError("not enough memory to time a convolution")

    monkeypatch.setattr(NativeEngine, "conv_timing", fail)
    program = network()
    with pytest.raises(EsccError, match=r"word \d+ \(conv_\w+\), layer .*: not enough memory"):
        simulate(program, random_images(program.inputs[0], 1, 0), engine="native")
