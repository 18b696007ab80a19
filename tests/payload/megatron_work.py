"""What the tests of conversions do inside the train environment: `python megatron_work.py TASK ARGUMENT...`.

Prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from _runtime import cpu_megatron, megatron_convert, tiny_model


def make(name: str, folder: str) -> None:
    """A tiny untrained model of an architecture, with grouped queries and an output layer of its own."""
    import torch
    import transformers

    torch.manual_seed(5)
    words = tiny_model.build_tokenizer()
    sizes: dict[str, Any] = {"vocab_size": len(words), "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    sizes |= {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    if name == "Qwen3Moe":
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    if name == "Llama":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def tensors(folder: str | Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {k: v for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}


def same(one: str | Path, other: str | Path) -> bool:
    """Do two models hold the same tensors, in the same number formats, bit by bit?"""
    import torch

    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def answer(folder: str | Path) -> list[int]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    asked = words("What is 12 in Roman numerals?", return_tensors="pt")
    ids: list[int] = model.generate(**asked, max_new_tokens=8, do_sample=False)[0].tolist()
    return ids


def logits(folder: str | Path, adapter: str | None = None) -> Any:
    """Of one prompt, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    with torch.no_grad():
        return model.eval()(torch.arange(5, 40)[None]).logits


def roundtrip(name: str, folder: str) -> Any:
    source, megatron, back = (str(Path(folder, part)) for part in ("source", "megatron", "back"))
    make(name, source)
    megatron_convert.import_model(source, Path(megatron), source, None, False)
    facts = megatron_convert.export_model(Path(megatron, "iter_0000000"), Path(back), source, False, False)
    config = json.loads(Path(back, "config.json").read_text())
    return [same(source, back), answer(source) == answer(back), facts["dtype"], config.get("dtype")]


def conversions(folder: str) -> Any:
    """Of three architectures what ``roundtrip`` returns, and what is told of two that cannot be converted."""
    import transformers
    from _runtime.payload import PayloadError

    report: dict[str, Any] = {n: roundtrip(n, str(Path(folder, n))) for n in ("Llama", "Qwen3", "Qwen3Moe")}
    words = tiny_model.build_tokenizer()
    sizes = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    hybrid = {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 16, "layers_block_type": ["mamba"]}
    hybrid |= {"mamba_num_heads": 2, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8}
    for name, more in (("GPT2", {}), ("NemotronH", hybrid)):
        source, out = Path(folder, name), Path(folder, name, "megatron")
        config = getattr(transformers, f"{name}Config")(**{**sizes, **more})
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
        words.save_pretrained(source)
        try:
            megatron_convert.import_model(str(source), out, str(source), None, False)
        except PayloadError as e:
            report[name] = [e.name, e.message, (out / "iter_0000000").exists()]
    return report


def split(name: str, folder: str, number: str) -> None:
    """As rank ``number`` of two: a Megatron checkpoint of a model that is cut over both."""
    cpu_megatron.enable()
    import torch
    from megatron.bridge import AutoBridge
    from megatron.core.utils import unwrap_model

    source = str(Path(folder, "source"))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=int(number), world_size=2)
    if number == "0":
        make(name, source)
    torch.distributed.barrier()
    bridge = AutoBridge.from_hf_pretrained(source)
    provider = bridge.to_megatron_provider()
    provider.tensor_model_parallel_size = 2
    provider.finalize()
    provider.initialize_model_parallel(seed=0)
    model = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    bridge.save_megatron_model(model, str(Path(folder, "megatron")), hf_tokenizer_path=source)
    shape = list(unwrap_model(model)[0].embedding.word_embeddings.weight.shape)
    Path(folder, f"shape-{number}.json").write_text(json.dumps(shape))  # stdout is shared with the library's threads
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def adapter(folder: str) -> Any:
    """Three steps of LoRA with Megatron-Bridge itself, on noise: below ``folder`` base-hf, base-megatron and lora."""
    cpu_megatron.enable()
    import torch
    from megatron.bridge import AutoBridge
    from megatron.bridge.peft.lora import LoRA
    from megatron.bridge.recipes.common import _pretrain_common
    from megatron.bridge.training.config import MockGPTDatasetConfig
    from megatron.bridge.training.finetune import finetune
    from megatron.bridge.training.gpt_step import forward_step

    source, base = str(Path(folder, "base-hf")), Path(folder, "base-megatron")
    tiny_model.save(source)
    megatron_convert.import_model(source, base, source, None, False)
    cfg: Any = _pretrain_common()
    cfg.model = AutoBridge.from_hf_pretrained(source).to_megatron_provider(load_weights=False)
    cfg.model.seq_length, cfg.model.attention_backend, cfg.mixed_precision = 32, None, None
    cfg.model.params_dtype = cfg.model.pipeline_dtype = torch.float32
    cfg.optimizer.bf16 = cfg.optimizer.use_distributed_optimizer = cfg.optimizer.use_precision_aware_optimizer = False
    cfg.optimizer.lr = cfg.optimizer.min_lr = 0.02
    cfg.scheduler.lr_warmup_iters = 0
    cfg.dist.distributed_backend, cfg.dist.use_decentralized_pg = "gloo", False
    cfg.ddp.use_distributed_optimizer = cfg.ddp.average_in_collective = False
    cfg.ddp.overlap_grad_reduce = cfg.ddp.overlap_param_gather = False
    cfg.ddp.data_parallel_sharding_strategy = "no_shard"
    cfg.train.train_iters, cfg.train.global_batch_size, cfg.train.micro_batch_size = 3, 4, 4
    cfg.train.manual_gc, cfg.validation.eval_iters = False, 0
    cfg.dataset = MockGPTDatasetConfig(
        random_seed=1, seq_length=32, reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
        num_dataset_builder_threads=1, dataloader_type="single", num_workers=0,
    )  # fmt: skip
    cfg.tokenizer.tokenizer_model = source
    cfg.peft = LoRA(target_modules=["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"], dim=8, alpha=16)
    cfg.checkpoint.pretrained_checkpoint, cfg.checkpoint.save = str(base), str(Path(folder, "lora"))
    cfg.checkpoint.load, cfg.checkpoint.save_interval = None, 3
    cfg.checkpoint.async_save = cfg.checkpoint.fully_parallel_save = False
    cfg.logger.tensorboard_dir = None
    finetune(cfg, forward_step)
    return sorted(p.name for p in Path(folder, "lora").iterdir())


def compare_megatron_merge(folder: str) -> Any:
    """How far merged-hf and merged-megatron below ``folder`` are from the base with the adapter beside it."""
    cpu_megatron.enable()
    from megatron.bridge import AutoBridge

    source, beside = str(Path(folder, "base-hf")), str(Path(folder, "adapter-hf"))
    AutoBridge.from_hf_pretrained(source).export_adapter_ckpt(str(Path(folder, "lora/iter_0000003")), beside, False)
    merged, again = Path(folder, "merged-hf"), Path(folder, "again")
    megatron_convert.export_model(Path(folder, "merged-megatron/iter_0000000"), again, source, False, False)
    both, one, plain = logits(source, beside), logits(merged), logits(source)
    return [float((one - both).abs().max()), float((one - plain).abs().max()), same(merged, again)]


def merges(folder: str) -> Any:
    """What ``compare_peft_merge`` and ``misfits`` return."""
    parts = {name: str(Path(folder, name)) for name in ("float32", "bfloat16", "misfits")}
    for part in parts.values():
        Path(part).mkdir()
    report = {name: compare_peft_merge(parts[name], name) for name in ("float32", "bfloat16")}
    return {**report, "misfits": misfits(parts["misfits"])}


def compare_peft_merge(folder: str, dtype: str) -> Any:
    """The same for a merge through PEFT, of an adapter that is made here."""
    import torch
    from _runtime import merge_lora
    from transformers import AutoModelForCausalLM

    source, beside, out = (str(Path(folder, part)) for part in ("source", "adapter", "merged"))
    make("Llama" if dtype == "bfloat16" else "Qwen3", source)
    Path(beside).mkdir()
    merge_lora._make_adapter(source, beside)
    merge_lora.hf_peft({"lora_checkpoint": beside, "output_hf_path": out, "torch_dtype": "auto"})
    both, one, plain = logits(source, beside), logits(out), logits(source)
    saved = AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype
    shutil.rmtree(out)
    merge_lora.hf_peft({"lora_checkpoint": beside, "output_hf_path": out, "torch_dtype": "float32"})
    exact = float((logits(out) - both).abs().max())
    assert saved == getattr(torch, dtype)
    return [float((one - both).abs().max()), float((one - plain).abs().max()), exact]


def misfits(folder: str) -> Any:
    """What is told of three adapters that do not fit their base."""
    import torch
    from _runtime import merge_lora
    from _runtime.payload import PayloadError
    from safetensors.torch import save_file

    source, told = str(Path(folder, "source")), []
    make("Qwen3", source)
    for number in range(3):
        beside = Path(folder, f"adapter-{number}")
        beside.mkdir()
        merge_lora._make_adapter(source, str(beside))
        held = tensors(beside)
        name = next(k for k in held if k.endswith("q_proj.lora_A.weight"))
        if number == 0:
            held[name] = torch.zeros(8, 60)
        if number == 1:
            tiny_model.build_tokenizer().save_pretrained(beside)
            words = json.loads((beside / "tokenizer.json").read_text())
            words["added_tokens"].append({**words["added_tokens"][0], "id": 499, "content": "<|more|>"})
            (beside / "tokenizer.json").write_text(json.dumps(words))
        if number == 2:
            held[name][0, 0] = float("nan")
        save_file(held, beside / "adapter_model.safetensors")
        try:
            merge_lora.hf_peft({"lora_checkpoint": str(beside), "output_hf_path": str(Path(folder, "merged"))})
        except PayloadError as e:
            told.append([e.name, e.message])
    return told


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
