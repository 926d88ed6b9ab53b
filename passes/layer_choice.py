"""Which convolutions of a network a decomposition takes by default: on the IR and on torch graphs alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Step:
    """An operation of a network, for the choice of layers.

    Attributes:
        reads: the values it takes, a convolution's map first.
        makes: the value it gives.
        convolves: a convolution or linear layer.
    """

    reads: tuple[Hashable, ...]
    makes: Hashable
    convolves: bool


def ends(inputs: Iterable[Hashable], steps: Sequence[Step]) -> set[Hashable]:
    """What the convolutions make that read the image, or that no other convolution follows (the classifier).

    Args:
        inputs: values that are images.
        steps: the network in order.
    """
    image, found = set(inputs), set[Hashable]()
    for step in steps:
        if step.convolves:
            if step.reads[0] in image:
                found.add(step.makes)
        elif all(value in image for value in step.reads):
            image.add(step.makes)
    followed: set[Hashable] = set()
    for step in reversed(steps):
        if step.convolves and step.makes not in followed:
            found.add(step.makes)
        if step.convolves or step.makes in followed:
            followed.update(step.reads)
    return found


@dataclass(frozen=True)
class Choice:
    """The default rule for convolutions that are not at an end of the network.

    Attributes:
        keep_dense: shell patterns of module paths to leave alone.
        planes: 0 leaves 1x1 kernels alone.
        min_inputs: fewest input channels per group (fewer: depthwise).
        min_kernels: fewest kernels, outputs times inputs per group.
    """

    keep_dense: tuple[str, ...]
    planes: int
    min_inputs: int
    min_kernels: int

    def takes(self, path: str, kernel: tuple[int, ...], inputs: int, outputs: int) -> bool:
        """Whether to decompose a convolution; ``inputs`` counts the channels of one group."""
        return (
            not any(fnmatchcase(path, pattern) for pattern in self.keep_dense)
            and (self.planes > 0 or kernel != (1, 1))
            and inputs >= self.min_inputs
            and inputs * outputs >= self.min_kernels
        )
