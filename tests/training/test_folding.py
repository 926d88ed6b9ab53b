"""Folded norms change no output; a network slim, folded, ternary and 8-bit can be taken up again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from escc.errors import EsccError
from escc.frontend import zoo
from escc.training.context import TransformContext
from escc.training.folding import fold_norms, remove_norm
from escc.training.graph import apply_structure, decompose, structure, trainable
from escc.training.modules import DecomposedConv2d
from escc.training.refinement import MARGIN, refine, undecided
from escc.training.slimming import slim
from escc.training.steps import quantize, ternarize

SHAPE = (3, 16, 16)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)


CONTEXT = TransformContext(torch.device("cpu"), SHAPE, images)


def network() -> nn.Module:
    model = zoo.settle(zoo.build("resnet8", num_classes=10, in_channels=3), SHAPE)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                # negative factors turn signs, which a decomposed layer's codes have to take
                norm.weight[::3] *= -1
                norm.bias.normal_(0, 0.1)
    return model.eval()


@pytest.mark.parametrize("method", ["", "svd", "als"])
def test_folding_changes_no_output(method: str) -> None:
    model = trainable(network(), input_shape=SHAPE)
    if method:
        decompose(model, bases=5, method=method)
    batch = torch.from_numpy(images(4))
    before = model(batch).detach()
    count = sum(isinstance(item, nn.BatchNorm2d) for item in model.modules())
    assert fold_norms(model) == count
    assert not any(isinstance(item, nn.BatchNorm2d) for item in model.modules())
    assert torch.allclose(model(batch), before, atol=1e-4 * float(before.abs().max()))
    scales = [item.scale for item in model.modules() if isinstance(item, DecomposedConv2d)]
    assert all(bool((scale >= 0).all()) and scale.requires_grad for scale in scales)
    with pytest.raises(EsccError):
        remove_norm(model, "bn1")


def test_everything_done_to_a_network_can_be_taken_up_again() -> None:
    model = trainable(network(), input_shape=SHAPE)
    slim(model, CONTEXT, keep=0.6, images=16)
    figures = refine(model, CONTEXT, bases=4, penalty=0.05, images=16)
    assert figures["layers"] == 6
    assert 0.05 < figures["density"] < 0.6
    quantize(model, CONTEXT, images=16)
    fresh = trainable(network(), input_shape=SHAPE)
    apply_structure(fresh, json.loads(json.dumps(structure(model))))
    fresh.load_state_dict(model.state_dict())
    batch = torch.from_numpy(images(4))
    assert torch.equal(fresh.eval()(batch), model.eval()(batch))
    assert structure(fresh) == structure(model)


@pytest.mark.parametrize("rule", ["twn", "ttq", "fixed"])
def test_real_coefficients_become_ternary(rule: str) -> None:
    model = trainable(network(), input_shape=SHAPE)
    decompose(model, bases=6, method="svd")
    figures = ternarize(model, CONTEXT, rule=rule)
    codes = [item.codes()[0] for item in model.modules() if isinstance(item, DecomposedConv2d)]
    assert len(codes) == 6
    assert all(bool(((code == 0) | (code.abs() == 1)).all()) for code in codes)
    nonzero = sum(int(code.count_nonzero()) for code in codes)
    assert figures["density"] == pytest.approx(nonzero / sum(code.numel() for code in codes))
    with pytest.raises(EsccError, match="no layer with real"):
        ternarize(model, CONTEXT, rule=rule)
    with pytest.raises(EsccError, match="no ternary rule"):
        ternarize(model, CONTEXT, rule="none")


def test_latents_start_near_the_codes_they_may_become() -> None:
    random = np.random.default_rng(0)
    bases, scale = random.standard_normal((4, 3, 3)), random.uniform(0.5, 2.0, 5)
    codes = random.integers(-1, 2, (5, 6, 4)).astype(np.int8)
    real = codes + random.uniform(-0.4, 0.4, codes.shape)
    weight = np.einsum("kcm,mrs->kcrs", real * scale[:, None, None], bases)
    latents = undecided(codes, bases, scale, weight)
    assert np.abs(latents - real).max() < 0.02
    far = undecided(codes, bases, scale, 5 * weight)
    assert np.array_equal(np.rint(far), codes)
    assert np.abs(far - codes).max() == pytest.approx(MARGIN)
