"""Train the demo network (ResNet-20 on Fashion-MNIST) and write what ``escc demo`` ships.

    python tools/train_demo.py --data /usr/share/datasets/fashion-mnist --out src/escc/demo

The data set is Debian's package ``dataset-fashion-mnist`` (MIT). Written: ``resnet20.safetensors``
(the trained state_dict, float32) and ``fashion_mnist.npz`` (2,000 test images with labels, 512 training
images for calibration). Uses a GPU when there is one; the same seed gives the same network on the same
device and torch build.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from escc.frontend import zoo

MEAN, STD = 0.2860, 0.3530
TEST_IMAGES, CALIBRATION_IMAGES = 2000, 512


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An unsigned-byte idx.gz file."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def normalise(images: Tensor) -> Tensor:
    """Bytes (N, 28, 28) to float (N, 1, 28, 28) with zero mean and unit variance."""
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Horizontal flips and shifts by up to 2 pixels, one draw for each image."""
    count, _, height, width = images.shape
    device = images.device
    flip = torch.rand(count, generator=generator, device=device) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=-MEAN / STD)
    dy = torch.randint(0, 5, (count,), generator=generator, device=device)
    dx = torch.randint(0, 5, (count,), generator=generator, device=device)
    rows = dy[:, None] + torch.arange(height, device=device)
    columns = dx[:, None] + torch.arange(width, device=device)
    index = torch.arange(count, device=device)[:, None, None]
    return padded[index, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images the network gets right, in float32."""
    model.eval()
    hits = 0
    for start in range(0, len(images), 500):
        scores = model(images[start : start + 500])
        hits += int((scores.argmax(1) == labels[start : start + 500]).sum())
    return hits / len(images)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int, seed: int) -> None:
    """SGD with Nesterov momentum, one-cycle schedule, label smoothing, bf16 autocast."""
    device = images.device
    generator = torch.Generator(device=device).manual_seed(seed)
    steps = len(images) // batch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=epochs * steps, pct_start=0.2
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(epochs):
        model.train()
        start, total = time.perf_counter(), torch.zeros((), device=device)
        order = torch.randperm(len(images), generator=generator, device=device)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            inputs = augment(images[chosen], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_function(model(inputs), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        print(
            f"epoch {epoch + 1}/{epochs} loss {total / steps:.4f} {time.perf_counter() - start:.1f} s",
            flush=True,
        )


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path("src/escc/demo"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    files = {
        kind: read_idx(arguments.data / f"{kind}-ubyte.gz")
        for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    }
    train_images = files["train-images-idx3"]
    model = zoo.build("resnet20", num_classes=10, in_channels=1, seed=arguments.seed)
    # torch documents memory_format, but its annotations do not have it
    model = model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = normalise(torch.tensor(train_images, device=device))
    labels = torch.tensor(files["train-labels-idx1"], device=device).long()
    train(model, images, labels, arguments.epochs, arguments.batch, arguments.seed)

    test_images = normalise(torch.tensor(files["t10k-images-idx3"], device=device))
    test_labels = torch.tensor(files["t10k-labels-idx1"], device=device).long()
    print(f"test accuracy, 10,000 images: {accuracy(model, test_images, test_labels):.4f}")
    shipped = accuracy(model, test_images[:TEST_IMAGES], test_labels[:TEST_IMAGES])
    print(f"test accuracy, the {TEST_IMAGES} images shipped: {shipped:.4f}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().float().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, arguments.out / "resnet20.safetensors")
    np.savez_compressed(
        arguments.out / "fashion_mnist.npz",
        images=files["t10k-images-idx3"][:TEST_IMAGES],
        labels=files["t10k-labels-idx1"][:TEST_IMAGES],
        calibration=train_images[:CALIBRATION_IMAGES],
    )


if __name__ == "__main__":
    main()
