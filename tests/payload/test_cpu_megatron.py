"""Megatron on the CPU: inert where CUDA is, its imports, and what stands for CUDA."""

from __future__ import annotations

import json
import os
import subprocess

import forks
from interpreters import STEPS, payload_python


def python(code: str, *arguments: object) -> str:
    """Run code in the train environment, with steps/ importable; returns the last line it printed."""
    done = subprocess.run(
        [payload_python("train"), "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(STEPS), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_nothing_is_touched_where_cuda_is_available() -> None:
    code = """
import json, sys, torch
torch.cuda.is_available = lambda: True
cuda = {n: getattr(torch.cuda, n) for n in dir(torch.cuda)}
group, finders, modules = torch.distributed.init_process_group, list(sys.meta_path), set(sys.modules)
from _runtime import cpu_megatron
said = []
on = cpu_megatron.enable(said.append)
same = all(getattr(torch.cuda, n) is v for n, v in cuda.items()) and torch.distributed.init_process_group is group
new = [n for n in set(sys.modules) - modules if n.startswith(("megatron", "triton", "transformer_engine"))]
print(json.dumps([on, said, same, sys.meta_path == finders, new]))
"""
    assert json.loads(python(code)) == [False, [], True, True, []]


def test_other_versions_are_refused_and_leave_torch_as_it_is() -> None:
    code = """
import importlib.metadata, json, sys, torch
importlib.metadata.version = lambda name: "9.9.9"
from _runtime import cpu_megatron, payload
before, finders = torch.cuda.current_device, list(sys.meta_path)
try:
    cpu_megatron.enable()
except payload.PayloadError as e:
    print(json.dumps([e.name, "megatron-core 9.9.9" in e.message, torch.cuda.current_device is before,
                      sys.meta_path == finders]))
"""
    assert json.loads(python(code)) == ["cpu_unsupported", True, True, True]


def test_what_is_absent_stays_absent_for_everyone_else() -> None:
    code = """
import importlib, importlib.util, json, sys
from _runtime import cpu_megatron
said = []
cpu_megatron.enable(said.append)
cpu_megatron.enable(said.append)
names = ("megatron.bridge.training.pretrain", "megatron.bridge.training.finetune", "megatron.bridge.recipes",
         "megatron.bridge.peft.lora", "megatron.bridge.training.model_load_save", "megatron.bridge.models.qwen_vl")
for name in names:
    importlib.import_module(name)
import megatron.bridge.models.kimi.kimi_bridge as bridge
from megatron.core import utils
absent = ("triton", "transformer_engine", "nvidia_resiliency_ext")
left = [n for n in sys.modules if n.partition(".")[0] in absent]
print(json.dumps([len(said), [importlib.util.find_spec(n) is None for n in absent], left, bridge.HAVE_TE]))
"""
    assert json.loads(python(code)) == [1, [True] * 3, [], False]


def test_cuda_means_the_cpu_and_its_random_numbers_repeat() -> None:
    code = """
import json
from _runtime import cpu_megatron
cpu_megatron.enable()
import torch
x = torch.zeros(2, device="cuda")
devices = {t.device.type for t in (x, x.cuda(), x.to("cuda:0"), x.to(device=torch.device("cuda", 0)),
                                   torch.tensor([1], device=torch.cuda.current_device()))}
torch.cuda.manual_seed(3)
state = torch.cuda.get_rng_state()
first = torch.rand(4, device="cuda")
torch.cuda.set_rng_state(state)
again = torch.rand(4)
print(json.dumps([torch.cuda.is_available(), sorted(devices), torch.equal(first, again), x.type(),
                  x.type(torch.float64).dtype is torch.float64, torch.cuda.max_memory_allocated()]))
"""
    assert json.loads(forks.python("megatron", code)) == [False, ["cpu"], True, "torch.cuda.FloatTensor", True, 0]


def test_architecture_whose_layers_need_a_gpu_is_refused_by_name() -> None:
    code = """
import json
from _runtime import cpu_megatron, payload
cpu_megatron.enable()
from megatron.bridge.models.gpt_provider import GPTModelProvider, local_layer_spec
from megatron.bridge.models.hybrid.hybrid_provider import HybridModelProvider
provider = GPTModelProvider(num_layers=1, hidden_size=8, num_attention_heads=1, masked_softmax_fusion=True)
cpu_megatron.local_spec(provider)
plain = [provider.transformer_layer_spec is local_layer_spec, provider.masked_softmax_fusion]
try:
    cpu_megatron.local_spec(HybridModelProvider(num_layers=1, hidden_size=8, num_attention_heads=1))
except payload.PayloadError as e:
    print(json.dumps([plain, e.name, "HybridModelProvider" in e.message]))
"""
    assert json.loads(forks.python("megatron", code)) == [[True, False], "cpu_unsupported", True]
