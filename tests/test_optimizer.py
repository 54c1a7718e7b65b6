"""Muon and AdamW as one optimizer."""

import copy

import pytest
import torch
from accelerate import Accelerator
from small import CONFIG, Scenes
from torch import nn

from model import Pix2SeqD
from model.diffusion.loss import LossConfig
from training.config import TrainingConfig
from training.fit import fit
from training.muon import MuonAdamW
from training.optimizer import build_optimizer


@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_moves_as_its_matrix_does(layout, of_gradient):
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=layout))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    optimizer = MuonAdamW([kernel], [{"params": [nn.Parameter(torch.ones(2))]}], lr=0.1, weight_decay=0.05, beta2=0.9)
    muon = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    before = kernel.detach().clone()
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3)
        kernel.grad, matrix.grad = gradient.to(memory_format=of_gradient), gradient.flatten(1)
        optimizer.step()
        muon.step()
    assert (kernel - before).abs().max() > 0.01
    # PyTorch's multiplies in bfloat16, in which the order of the columns matters a little.
    assert torch.allclose(kernel.detach().flatten(1), matrix, atol=0.01)


def test_the_rest_moves_as_with_adamw():
    torch.manual_seed(0)
    one, two = nn.Parameter(torch.randn(5)), nn.Parameter(torch.zeros(5))
    two.data.copy_(one.data)
    groups = [{"params": [one], "weight_decay": 0.0}]
    optimizer = MuonAdamW([nn.Parameter(torch.ones(2, 2))], groups, lr=0.1, weight_decay=0.05, beta2=0.9)
    adamw = torch.optim.AdamW([two], lr=0.1, betas=(0.9, 0.9), weight_decay=0.0)
    for rate in (0.1, 0.01):
        for group in (*optimizer.param_groups, *adamw.param_groups):
            group["lr"] = rate
        one.grad = torch.randn(5)
        two.grad = one.grad.clone()
        optimizer.step()
        adamw.step()
    assert torch.allclose(one, two)


def test_every_parameter_has_one_place():
    model = Pix2SeqD(CONFIG)
    optimizer = build_optimizer(model, TrainingConfig(optimizer="muon"))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    hidden = set(optimizer.param_groups[0]["params"])
    assert not hidden & set(model.denoiser.conv_out.parameters())
    assert all(p.ndim >= 2 for p in hidden)


def test_a_state_brings_its_momenta_and_no_settings():
    def made():
        kernel, other = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(2))
        return MuonAdamW([kernel], [{"params": [other]}], lr=0.1, weight_decay=0.05, beta2=0.9), kernel, other

    optimizer, kernel, other = made()
    kernel.grad, other.grad = torch.randn(4, 3), torch.randn(2)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["muon"]["param_groups"][0] |= {"momentum": 0.5, "lr": 7.0, "strange": 1}
    loaded, twin, _ = made()
    loaded.load_state_dict(state)
    (group,) = loaded.muon.param_groups
    assert group["momentum"] == 0.95 and group["lr"] == 0.1 and "strange" not in group
    assert torch.equal(
        loaded.muon.state[twin]["momentum_buffer"],
        optimizer.muon.state[kernel]["momentum_buffer"],
    )
    state["muon"]["state"][0]["momentum_buffer"] = torch.zeros(5, 5)
    with pytest.raises(ValueError):
        made()[0].load_state_dict(state)


def test_a_run_with_muon_goes_on_to_the_same_weights(tmp_path):
    def train(folder, resume=None):
        torch.manual_seed(0)
        model = Pix2SeqD(CONFIG)
        config = TrainingConfig(
            steps=4, batch_size=2, warmup=1, lr=1e-3, num_workers=0, optimizer="muon", save_every=2, validate_every=0
        )
        fit(model, LossConfig(), config, Scenes(), folder, Accelerator(cpu=True), resume, quiet=True)
        return torch.load(folder / "model-latest.pt", weights_only=True)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train(tmp_path)
    half = torch.load(tmp_path / "model-1.pt", weights_only=True)
    assert half["training"]["step"] == 2
    (tmp_path / "resumed").mkdir()
    resumed = train(tmp_path / "resumed", half)
    torch.set_num_threads(threads)
    for name, value in whole["training"]["weights"].items():
        assert torch.equal(value, resumed["training"]["weights"][name]), name
    buffers = whole["training"]["optimizer"]["muon"]["state"]
    assert buffers and all(torch.equal(v["momentum_buffer"], resumed["training"]["optimizer"]["muon"]["state"][k]
                                       ["momentum_buffer"]) for k, v in buffers.items())  # fmt: skip
