"""The policy that is trained: a Hugging Face model, one exported from a Megatron checkpoint, or ``tiny_llama``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _runtime import chat_data, cpu, hf_checkpoint, megatron_checkpoint
from _runtime.payload import PayloadError
from _runtime.rl import conversion
from _runtime.rl.settings import at

KEY = conversion.KEY


@dataclass(frozen=True)
class Policy:
    """``path``: a directory or Hub id that transformers loads; ``facts`` say where it came from."""

    path: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def find(cfg: Mapping[str, Any], output: Path, seed: int, launcher: Sequence[str] = ()) -> Policy:
    """Settle on the policy; what has to be made for it is made below ``output``.

    ``launcher`` starts a Python that has Megatron-Bridge, where this one has not.

    Raises:
        PayloadError: there is none, or it is no model.
    """
    model = at(cfg, KEY)
    if not chat_data.given(model):
        raise PayloadError("model_missing", f"{KEY} is not set", hf_checkpoint.GIVE_MODEL)
    name = str(model)
    if name == "tiny_llama":
        from _runtime.rl import warm_start

        made = output / "base"
        return Policy(str(made), {"base_model": "tiny_llama", "warm_start": warm_start.make(made, "policy", seed)})
    path = Path(name).expanduser()
    if megatron_checkpoint.is_megatron(path):
        exported = output / "policy_hf"
        named = at(cfg, "policy.hf_model_id")
        conversion.to_hf(path, exported, str(named) if named else None, launcher)
        return Policy(str(exported), {"base_model": str(path), "exported_from_megatron": True})
    hf_checkpoint.check_base(name, KEY)
    return Policy(str(path) if hf_checkpoint.is_local(name) else name, {"base_model": name})


def tokenizer(cfg: Mapping[str, Any], policy: Policy) -> Any:
    """The policy's tokenizer, or the one that the config names instead; it pads on the left, as generation needs.

    Raises:
        PayloadError: there is none, or it has no chat template.
    """
    named = at(cfg, "policy.tokenizer.name")
    own = not chat_data.given(named) or str(named) == str(at(cfg, KEY))
    where = policy.path if own else str(named)
    found = hf_checkpoint.load_tokenizer(where, KEY if own else "policy.tokenizer.name")
    if not hf_checkpoint.template_text(found):
        raise PayloadError(
            "chat_template_missing",
            f"{KEY}={where}: its tokenizer has no chat template",
            "Use the instruct variant of the model, or train it on conversations first (sft/*).",
        )
    if found.pad_token is None:
        found.pad_token = found.eos_token
    found.padding_side = "left"
    return found


def load(cfg: Mapping[str, Any], policy: Policy) -> Any:
    """The model, in float32 without a GPU and in ``policy.precision`` with one.

    Raises:
        PayloadError: it is too large to be trained on a CPU.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    if not cpu.has_cuda():
        cpu.choose_threads(cpu.refuse_large(policy.path, key=KEY))
    precision = str(at(cfg, "policy.precision", "float32")) if cpu.has_cuda() else "float32"
    return AutoModelForCausalLM.from_pretrained(policy.path, dtype=precision)
