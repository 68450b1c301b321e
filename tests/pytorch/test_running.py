"""Modules in PyTorch's other ways to run them: compiled, exported, distributed, without slimc; and against ONNX."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from slimc import ir
from slimc.compiler.load import load_network
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.pytorch import export_program, from_torch, to_torch
from slimc.targets.target import find_target
from tests.artefacts import OPTIONS, VECTORS
from tests.onnx_files import emitted, run_onnx
from tests.pytorch.comparing import assert_same
from tests.pytorch.networks import NETWORKS, images_for, loss_of, tensors


@pytest.mark.parametrize("name", NETWORKS)
def test_it_compiles_as_one_graph_with_its_gradients(name):
    torch._dynamo.reset()
    module = NETWORKS[name]()
    images = images_for(module)
    loss_of(module(images)).backward()
    expected = {key: p.grad for key, p in module.named_parameters()}
    module.zero_grad()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    loss_of(compiled(images)).backward()
    for key, parameter in module.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-9, atol=1e-9, msg=key)
        else:
            assert parameter.grad is None


EXPORTED = [("searched", 2), *((name, None) for name in ("everything", "absorbed", "selecting", "limited", "split"))]


@pytest.mark.parametrize(("name", "batch_size"), EXPORTED)
def test_it_exports_strictly(name, batch_size, tmp_path):
    module = NETWORKS[name]()
    export_program(module, tmp_path / "m.pt2", batch_size=batch_size)
    program = torch.export.load(tmp_path / "m.pt2")
    assert set(program.state_dict) == set(module.state_dict())
    for count in (2,) if batch_size else (1, 2, 5):
        images = images_for(module, count)
        with torch.no_grad():
            expected, found = tensors(module(images)), tensors(program.module()(images))
        for first, second in zip(found, expected, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


ALONE = """
import sys
sys.modules["slimc"] = None  # whoever imports it fails
import torch
inputs, outputs = torch.load(sys.argv[2])
found = torch.export.load(sys.argv[1]).module()(inputs)
torch.testing.assert_close(found, outputs, rtol=1e-6, atol=1e-6)
assert not [name for name in sys.modules if name.startswith(("slimc.", "timm"))]
print(torch.export.load(sys.argv[1], extra_files=(notes := {"note.json": ""})) and notes["note.json"])
"""


@pytest.mark.parametrize("vector", ["digits", "lvvit"])
def test_a_file_runs_with_torch_alone(vector, tmp_path):
    model = compile_model(load_network(VECTORS[vector], OPTIONS.get(vector)).masked, passes_for(find_target("generic")))
    module = to_torch(model)
    export_program(module, tmp_path / "m.pt2", batch_size=1, notes={"note.json": "kept"})
    images = images_for(module, 1)
    with torch.no_grad():
        torch.save((images, module(images)), tmp_path / "io.pt")
    command = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "m.pt2"), str(tmp_path / "io.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "kept"


@pytest.fixture
def process_group(tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_in_parallel(name):
    module = NETWORKS[name]()
    parallel = torch.nn.parallel.DistributedDataParallel(module)
    images = images_for(module)
    optimiser = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=1e-4)
    losses = []
    for _ in range(3):  # a parameter that got no gradient fails the second
        optimiser.zero_grad()
        loss = loss_of(parallel(images))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


@pytest.mark.parametrize("target", ["generic", "cpu", "sm90"])
@pytest.mark.parametrize("vector", VECTORS)
def test_float32_is_what_onnx_runtime_computes(vector, target):
    network = load_network(VECTORS[vector], OPTIONS.get(vector))
    model = compile_model(network.masked, passes_for(find_target(target)))
    assert {array.dtype for array in ir.arrays(model)} == {np.dtype(np.float32)}
    module = to_torch(model, find_target(target))
    images = images_for(module, 2)
    with torch.no_grad():
        found = module(images).numpy()
    expected = run_onnx(emitted(model, target=target, batch_size=2), images.numpy())
    assert np.abs(found - expected).max() <= 2e-5 * expected.std()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["everything", "searched", "absorbed", "dropping"])
def test_it_runs_in_half_precision(name, dtype):
    module = NETWORKS[name]().float()
    images = images_for(module)
    with torch.no_grad():
        expected = tensors(module(images))
        with torch.autocast("cpu", dtype=dtype):
            mixed = tensors(module(images))
        narrow = tensors(copy.deepcopy(module).to(dtype)(images.to(dtype)))
    assert {tensor.dtype for tensor in narrow} == {dtype}
    for found in (mixed, narrow):
        for first, second in zip(found, expected, strict=True):
            assert (first.float() - second).abs().max() <= 0.03 * second.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_copied_and_pickled(name, tmp_path):
    module = NETWORKS[name]()
    torch.save(module, tmp_path / "m.pt")
    images = images_for(module)
    with torch.no_grad():
        expected = tensors(module(images))
        for other in (copy.deepcopy(module), torch.load(tmp_path / "m.pt", weights_only=False)):
            assert all(torch.equal(a, b) for a, b in zip(tensors(other(images)), expected, strict=True))
            assert_same(from_torch(other), from_torch(module))
