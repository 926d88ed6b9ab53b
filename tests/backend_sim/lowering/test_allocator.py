"""Placing buffers: nothing alive at the same time overlaps, nothing lies outside."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from escc.backend_sim.lowering.allocator import ALIGNMENT, Block, align, free_gaps, pack, place_blocks

blocks = st.lists(
    st.builds(
        lambda size, first, length: Block(size, first, first + length),
        st.integers(1, 300),
        st.integers(-1, 12),
        st.integers(0, 5),
    ),
    max_size=12,
)


def check_separate(items: list[Block], addresses: list[int]) -> None:
    for (a, at), (b, bt) in combinations(zip(items, addresses, strict=True), 2):
        if a.first <= b.last and b.first <= a.last:
            assert at + a.size <= bt or bt + b.size <= at


@given(blocks, st.integers(1, 1500))
def test_blocks_in_a_limited_memory(items: list[Block], total: int) -> None:
    addresses = place_blocks(items, total)
    if addresses is None:
        # one at a time they may fit, together at some step they cannot be far from full
        assert max(_alive(items, step) for step in range(-1, 18)) > total // 3
        return
    check_separate(items, addresses)
    for item, address in zip(items, addresses, strict=True):
        assert address % ALIGNMENT == 0
        assert 0 <= address <= address + item.size <= align(total)


def _alive(items: list[Block], step: int) -> int:
    return sum(align(item.size) for item in items if item.first <= step <= item.last)


@given(blocks)
def test_blocks_without_a_limit_reuse_addresses(items: list[Block]) -> None:
    addresses = place_blocks(items, None)
    assert addresses is not None
    check_separate(items, addresses)
    top = max((a + item.size for a, item in zip(addresses, items, strict=True)), default=0)
    assert top <= sum(align(item.size) for item in items)


def test_a_chain_of_maps_needs_two_of_them() -> None:
    chain = [Block(400, step, step + 1) for step in range(20)]
    for total in (None, 800):
        addresses = place_blocks(chain, total)
        assert addresses is not None
        assert set(addresses) == {0, 400}
    assert place_blocks(chain, 799) is None


spans = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 90)).map(lambda p: (p[0], p[0] + p[1])), max_size=5
)


@given(st.lists(st.integers(1, 120), max_size=6), spans, spans)
def test_packing_into_gaps(
    sizes: list[int], used: list[tuple[int, int]], avoid: list[tuple[int, int]]
) -> None:
    gaps = free_gaps(used, 512)
    addresses = pack(sizes, gaps, avoid)
    if addresses is None:
        assert pack(sizes, gaps) is None
        return
    check_separate([Block(size, 0, 0) for size in sizes], addresses)
    for size, address in zip(sizes, addresses, strict=True):
        assert any(low <= address and address + size <= high for low, high in gaps)


def test_packing_keeps_clear_of_what_is_in_use_where_it_can() -> None:
    assert pack([64], [(0, 256)], [(0, 128)]) in ([128], [192])
    assert pack([200], [(0, 256)], [(0, 128)]) in ([0], [56])
    assert pack([300], [(0, 256)]) is None
