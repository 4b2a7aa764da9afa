"""SpectralNewton on a CUDA device: the steps of the host, and replays of a captured step."""

import copy

import pytest
import torch
from torch import nn

from spectral_ext.optim import SpectralNewton


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestCuda:
    def nets(self):
        host = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 33), nn.ReLU(), nn.Linear(33, 5))
        return host, copy.deepcopy(host).cuda()

    def set_gradients(self, host, device):
        for p, q in zip(host.parameters(), device.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.cuda() if q.grad is None else q.grad.copy_(p.grad)

    def test_steps_equal_those_on_the_host(self):
        host, device = self.nets()
        optimizers = [SpectralNewton(model, 0.02) for model in (host, device)]
        for _ in range(3):
            self.set_gradients(host, device)
            for optimizer in optimizers:
                optimizer.step()
        for p, q in zip(host.parameters(), device.parameters()):
            torch.testing.assert_close(p, q.cpu(), atol=2e-4, rtol=1e-3)

    def test_a_captured_step_replays(self):
        host, device = self.nets()
        settings = {"capturable": True, "nonfinite": "skip"}
        lr = torch.tensor(0.02, device="cuda")
        expected, captured = SpectralNewton(host, 0.02), SpectralNewton(device, lr, **settings)
        self.set_gradients(host, device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected.step()
            captured.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.step()
        for rate in (0.02, 0.01):
            lr.fill_(rate)
            for group in expected.param_groups:
                group["lr"] = rate
            self.set_gradients(host, device)
            expected.step()
            graph.replay()
        for p, q in zip(host.parameters(), device.parameters()):
            torch.testing.assert_close(p, q.cpu(), atol=2e-4, rtol=1e-3)
