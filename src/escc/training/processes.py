"""One process, or several started by torchrun."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from escc.errors import EsccError


@dataclass(frozen=True)
class Processes:
    """The group of processes that train together.

    Attributes:
        rank: of this one, 0 first.
        count: of all of them.
        device: of this one.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """This process writes files and talks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes; anew whenever other parameters learn."""
        if self.count == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        return batch if self.count == 1 else batch[self.rank :: self.count]

    def total(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def same_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers (running statistics)."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            distributed.destroy_process_group()


def join(device: str) -> Processes:
    """Join the group torchrun describes in the environment, or be alone.

    Args:
        device: "auto" (CUDA when there is one), "cpu", "cuda".

    Raises:
        EsccError: no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EsccError("no CUDA device", hint="--device cpu")
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    here = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(here)
    if count == 1:
        return Processes(0, 1, here)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    return Processes(distributed.get_rank(), count, here)
