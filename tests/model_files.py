"""Tiny models, adapters and checkpoints of every layout, byte for byte as the libraries write them."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemotron_dagster import artifacts
from nemotron_dagster.errors import ArtifactError

VOCAB, HIDDEN, FFN, HEADS, KV, LAYERS = 12, 8, 16, 4, 2, 2
_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "F8_E4M3": 1}
Shapes = Mapping[str, tuple[int, ...]]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def safetensors(file: Path, shapes: Shapes, dtype: str = "F32", metadata: Any = None, fill: int = 0) -> Path:
    """A file with the named tensors, in order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        size = _BYTES[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return raw(file, header, bytes([fill]) * end)


def raw(file: Path, header: Any, data: bytes = b"") -> Path:
    """A file with that header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def llama_tensors(layers: int = LAYERS, tied: bool = True) -> dict[str, tuple[int, ...]]:
    head = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for n in range(layers):
        at = f"model.layers.{n}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (KV * head, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (KV * head, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{at}.mlp.up_proj.weight": (FFN, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, FFN),
            f"{at}.input_layernorm.weight": (HIDDEN,),
        }
    shapes["model.norm.weight"] = (HIDDEN,)
    return shapes if tied else {**shapes, "lm_head.weight": (VOCAB, HIDDEN)}


def llama_config(**changed: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        **changed,
    }


def tokenizer(folder: Path, template: str | None = TEMPLATE, size: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: n for n, token in enumerate([*(f"t{n}" for n in range(size - 2)), "t1t2", "t2t1"])}
    model = {"type": "BPE", "vocab": vocab, "merges": [["t1", "t2"]]}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": 0, "content": "t0", **flags, "special": True}]
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def llama(folder: Path, shards: int = 1, shapes: Shapes | None = None, dtype: str = "F32", **changed: Any) -> Path:
    """A whole Hugging Face model; with several shards there is an index."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(**changed)
    shapes = shapes if shapes is not None else llama_tensors(tied=config["tie_word_embeddings"])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    tokenizer(folder)
    if shards == 1:
        safetensors(folder / "model.safetensors", shapes, dtype, {"format": "pt"})
        return folder
    names, per = list(shapes), -(-len(shapes) // shards)
    weight_map, total = {}, 0
    for n in range(shards):
        part = {name: shapes[name] for name in names[n * per : (n + 1) * per]}
        file = folder / f"model-{n + 1:05}-of-{shards:05}.safetensors"
        before = safetensors(file, part, dtype, {"format": "pt"}).stat().st_size
        total += before - 8 - struct.unpack("<Q", file.read_bytes()[:8])[0]
        weight_map |= dict.fromkeys(part, file.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def adapter(folder: Path, rank: int = 2, drop: Sequence[str] = (), **changed: Any) -> Path:
    """A PEFT adapter of q_proj and v_proj."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "org/base",
        **changed,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes = {}
    for n in range(LAYERS):
        for module in ("q_proj", "v_proj"):
            at = f"base_model.model.model.layers.{n}.self_attn.{module}"
            shapes[f"{at}.lora_A.weight"] = (rank, HIDDEN)
            shapes[f"{at}.lora_B.weight"] = (HIDDEN, rank)
    safetensors(folder / "adapter_model.safetensors", {k: v for k, v in shapes.items() if k not in drop})
    return folder


@dataclass
class _StorageInfo:
    """Pickles to the opcodes that torch's class of this name does."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


def torch_file(file: Path, name: str = "train_state") -> Path:
    """A zip archive as torch.save writes: stored, not compressed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{name}/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr(f"{name}/data/0", bytes(64))
    return file


def metadata(folder: Path, entries: Sequence[tuple[str, int, int]], protocol: int = 4) -> None:
    stored = {(f"w{n}", n): _StorageInfo(*entry) for n, entry in enumerate(entries)}
    (folder / ".metadata").write_bytes(pickle.dumps({"storage_data": stored}, protocol=protocol))


RUN_CONFIG = """\
_target_: megatron.bridge.training.config.ConfigContainer
checkpoint:
  pretrained_checkpoint: {pretrained}
model:
  hf_model_id: {base}
  seq_length: 128
  vocab_size: 12
  tensor_model_parallel_size: 2
  pipeline_model_parallel_size: 1
  context_parallel_size: 1
  expert_model_parallel_size: 1
peft: {peft}
"""
PEFT = """
  _target_: megatron.bridge.peft.lora.LoRA
  dim: 8
  alpha: 16
  target_modules: [linear_qkv, linear_proj]
  params_to_save: !!set
    decoder.layers.0.adapter.linear_in.weight: null
"""


def iteration(folder: Path, ranks: int = 2, base: str = "org/base", peft: str = "null", protocol: int = 4) -> Path:
    """One iter_* directory of Megatron-Bridge: two shards of each rank."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for rank in range(ranks):
        for part in range(2):
            name = f"__{rank}_{part}.distcp"
            (folder / name).write_bytes(hashlib.sha256(name.encode()).digest() * 10)
            entries += [(name, 0, 200), (name, 200, 120)]
    metadata(folder, entries, protocol)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    (folder / "run_config.yaml").write_text(RUN_CONFIG.format(base=base, peft=peft, pretrained="null"))
    torch_file(folder / "train_state.pt")
    tokenizer(folder / "tokenizer")
    return folder


def megatron(folder: Path, iterations: Sequence[int] = (5, 10), **changed: Any) -> Path:
    """A parent directory; the last iteration is the tracked one."""
    for n in iterations:
        iteration(folder / f"iter_{n:07d}", **changed)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(iterations[-1]))
    torch_file(folder / "latest_train_state.pt")
    return folder


def refused(type_name: str, path: Path, message: str) -> str:
    """Check that the artifact is refused with a message that matches; the message."""
    with pytest.raises(ArtifactError, match=message) as error:
        artifacts.validate(type_name, path)
    return str(error.value)


def edit(file: Path, **changed: Any) -> None:
    """Change keys of a JSON file."""
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, **changed}))
