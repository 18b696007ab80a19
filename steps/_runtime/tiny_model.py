"""A Llama of well under a million parameters and its tokenizer, both made from scratch and offline.

The untrained model of every tiny config. Numbers are spelled digit by digit and Roman numerals letter by letter, so
that a few minutes on a CPU are enough to learn the one from the other; any other text still encodes, byte by byte
where no longer token fits. ``tiny_llama/`` beside this file is what ``save`` writes, without the weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent / "tiny_llama"
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MAX_LENGTH = 512
VOCABULARY = 448

# The generation block tells trainers which tokens are the answer. It holds the end token, so that a trained model
# stops by itself, and not the role line, which the generation prompt supplies.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What the merges are learned from: words that questions and instructions are made of, no numerals.
CORPUS = (
    "system\nuser\nassistant\n" * 4,
    "What is the number in Roman numerals?",
    "Write the number as a Roman numeral.",
    "Convert the number to Roman numerals.",
    "Give the Roman numeral for the number.",
    "Roman numeral of the number:",
    "How do you write the number with Roman numerals?",
    "Express this number in the Roman system, please.",
    "You are a helpful assistant. Answer with the numeral alone.",
    "Question: Answer: Translate the sentence. Summarize the text. Explain your answer.",
)


def build_tokenizer(vocab_size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer; the same on every machine."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # A space goes with the word after it, but a digit, a numeral letter and a line end always stand alone.
    pieces = Regex(r"[0-9MDCLXVI\n]| ?[A-Za-z]+?(?=[MDCLXVI])| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    seed: int = 0,
    hidden_size: int = 128,
    layers: int = 2,
    heads: int = 4,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> LlamaForCausalLM:
    """Make the untrained model; the same weights for the same seed.

    Raises:
        ValueError: sizes that do not divide into heads.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    if hidden_size < 1 or layers < 1 or heads < 1 or hidden_size % (2 * heads):
        raise ValueError(f"hidden_size {hidden_size}: must be a multiple of twice the number of heads ({heads})")
    words = tokenizer or build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, max_length=MAX_LENGTH, do_sample=False
    )
    return model


def save(directory: Path | str, seed: int = 0, **sizes: Any) -> int:
    """Write a whole Hugging Face checkpoint into ``directory``; returns the number of parameters."""
    tokenizer = build_tokenizer()
    model = build_model(seed, tokenizer=tokenizer, **sizes)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    return model.num_parameters()


def save_bundled() -> None:
    """Write ``tiny_llama/`` anew: everything but the weights."""
    shutil.rmtree(HERE, ignore_errors=True)
    save(HERE)
    for weights in HERE.glob("*.safetensors"):
        weights.unlink()


if __name__ == "__main__":
    save_bundled()
