"""Checkpoints: every layout that loads is accepted, and whatever would fail in a job is named before it starts."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_files as make
import pytest
from model_files import edit, refused

from nemotron_dagster import artifacts
from nemotron_dagster.artifacts.manifest import tally
from nemotron_dagster.artifacts.registry import artifact_type
from nemotron_dagster.artifacts.types import _safetensors, checkpoint_hf
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.errors import ArtifactError
from nemotron_dagster.project import Project

Damage = Callable[[Path], Any]


# ---- safetensors


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"[]", b"", "does not begin with {"),
        (b"{", b"", "header is damaged"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "header is damaged"),
        (b'{"\xff": 1}', b"", "header is damaged"),
        (b'{"a": 1, "a": 2}', b"", "names a twice"),
        ({"a": 5}, b"", "tensor a has no dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "tensor a has no dtype"),
        ({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, bytes(4), "dtype 'F33'"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4), "dtype"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4), r"the shape \[-1\]"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4), "the shape"),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4), "the shape"),
        ({"a": {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 4]}}, bytes(4), "the shape"),
        ({"a": {"dtype": "F32", "shape": [2**62] * 64, "data_offsets": [0, 4]}}, bytes(4), "wrong size"),
        ({"a": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}, bytes(4), "the shape"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4), "the offsets"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4), "the offsets"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, bytes(4), "the offsets"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}, bytes(4), "the offsets"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4), "wrong size"),
        ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, bytes(2), "wrong size"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8), "leaves 4 bytes out"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(3), "it was truncated"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(5), "something was appended"),
        ({"__metadata__": {"a": 1}}, b"", "does not map text to text"),
        ({"__metadata__": []}, b"", "does not map text to text"),
    ],
)
def test_a_malformed_header_is_one_named_problem(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    problems = Problems()
    assert _safetensors.read_header(make.raw(tmp_path / "m.safetensors", header, data), problems) is None
    with pytest.raises(ArtifactError, match=rf"m\.safetensors: .*{message}"):
        problems.check()


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    part = {"dtype": "F32", "shape": [1]}
    header = {"a": {**part, "data_offsets": [0, 4]}, "b": {**part, "data_offsets": [2, 6]}}
    problems = Problems()
    assert _safetensors.read_header(make.raw(tmp_path / "m", header, bytes(6)), problems) is None
    assert "tensor b overlaps the tensor before it" in problems.shown[0]


def test_a_header_may_be_padded_unordered_and_hold_empty_and_packed_tensors(tmp_path: Path) -> None:
    header = {
        "late": {"dtype": "F4", "shape": [4, 2], "data_offsets": [2, 6]},
        "empty": {"dtype": "F32", "shape": [0, 7], "data_offsets": [2, 2]},
        "first": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]},
    }
    problems = Problems()
    file = make.raw(tmp_path / "m", json.dumps(header).encode() + b"   ", bytes(6))
    found = _safetensors.read_header(file, problems)
    problems.check()
    assert found is not None and sum(t.elements for t in found.tensors) == 9


@pytest.mark.parametrize("length", [0, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_is_believed_only_as_far_as_the_file_goes(tmp_path: Path, length: int) -> None:
    (tmp_path / "m").write_bytes(struct.pack("<Q", length) + b"{}")
    problems = Problems()
    assert _safetensors.read_header(tmp_path / "m", problems) is None and problems.count == 1


def test_a_pipe_in_place_of_weights_is_refused_without_waiting(tmp_path: Path) -> None:
    make.llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    refused("checkpoint_hf", tmp_path, "is no regular file")


# ---- checkpoint_hf


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_is_described_without_torch(tmp_path: Path, shards: int, tied: bool) -> None:
    facts = artifacts.validate("checkpoint_hf", make.llama(tmp_path, shards, tie_word_embeddings=tied))
    wanted = sum(math.prod(s) for s in make.llama_tensors(tied=tied).values())
    assert (facts["parameters"], facts["dtypes"], facts["shards"]) == (wanted, {"F32": wanted}, shards)
    assert (facts["architecture"], facts["model_type"], facts["context_length"]) == ("LlamaForCausalLM", "llama", 64)
    assert (facts["hidden_size"], facts["layers"], facts["heads"], facts["kv_heads"]) == (8, 2, 4, 2)
    assert facts["embedding_rows"] == 12
    assert facts["tied"] is tied and facts["tokenizer_size"] == 10 and facts["chat_template"] is True
    assert facts["notes"] == [] and "torch" not in sys.modules
    assert facts["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    assert len(json.dumps(facts)) < 4000


DAMAGES: list[tuple[Damage, str]] = [
    (lambda p: (p / "config.json").write_text("[]"), r"config\.json: is not a JSON object"),
    (lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), r"config\.json.*is not UTF-8"),
    (lambda p: (p / "config.json").write_text('{"a":' * 100_000), "nests deeper"),
    (lambda p: (p / "generation_config.json").write_text("{"), r"generation_config\.json: is not JSON"),
    (lambda p: (p / "tokenizer.json").write_text("{}"), r"tokenizer\.json: has no `model`"),
    (lambda p: edit(p / "tokenizer.json", model={"type": "BPE", "vocab": {"a": -1}}), "does not map tokens to ids"),
    (lambda p: edit(p / "tokenizer.json", model={"type": "Magic", "vocab": {}}), "model.type is 'Magic'"),
    (lambda p: edit(p / "tokenizer.json", added_tokens=[{"id": "0"}]), "added_tokens are not objects"),
    (lambda p: make.tokenizer(p, size=13), r"token id 12, and the model has 12 embeddings"),
    (lambda p: edit(p / "tokenizer_config.json", chat_template=5), "the chat template is no text"),
    (lambda p: (p / "tokenizer_config.json").write_text("x"), r"tokenizer_config\.json: is not JSON"),
    (lambda p: (p / "model.safetensors.part").touch(), r"\.part: looks like a download or copy that has not ended"),
    (lambda p: (p / "model.safetensors.incomplete").touch(), "has not ended"),
    (lambda p: (p / "model.safetensors.lock").touch(), "has not ended"),
    (lambda p: make.safetensors(p / "model-00001-of-00002.safetensors", {"a": (1,)}), "of another save"),
    (lambda p: make.safetensors(p / "model.safetensors", {}), "holds no tensor"),
    (lambda p: edit(p / "config.json", vocab_size=13), "has 12 rows for a vocab_size of 13"),
    (lambda p: edit(p / "config.json", hidden_size=16), "is 8 wide, and hidden_size is 16"),
    (lambda p: edit(p / "config.json", num_hidden_layers=3), "the weights lack 1 of 3 layers: 2"),
    (lambda p: edit(p / "config.json", num_hidden_layers=10**12), "the weights lack .* layers: 2, 3"),
    (lambda p: edit(p / "config.json", num_hidden_layers=1), "have layer 1, and the config counts 1"),
    (lambda p: edit(p / "config.json", num_key_value_heads=4), r"k_proj.weight is \[4, 8\].*make it \[8, 8\]"),
    (lambda p: edit(p / "config.json", intermediate_size=32), "intermediate_size"),
    (lambda p: edit(p / "config.json", tie_word_embeddings=False), "no lm_head.weight"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_what_would_not_load_is_refused_and_named(tmp_path: Path, damage: Damage, message: str) -> None:
    damage(make.llama(tmp_path))
    refused("checkpoint_hf", tmp_path, message)


def without(name: str) -> dict[str, tuple[int, ...]]:
    return {k: v for k, v in make.llama_tensors().items() if k != name}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", "layer 1 lacks mlp.up_proj.weight, which others have"),
        ("model.layers.0.input_layernorm.weight", "layer 0 lacks input_layernorm"),
    ],
)
def test_a_layer_that_lost_a_tensor_is_named(tmp_path: Path, name: str, message: str) -> None:
    refused("checkpoint_hf", make.llama(tmp_path, shapes=without(name)), message)


SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def map_to(folder: Path, tensor: str, shard: str | None) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if k != tensor}
    edit(file, weight_map=index["weight_map"] | ({tensor: shard} if shard else {}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / SHARD_2).unlink(), f"shard {SHARD_2} is missing"),
        (lambda p: map_to(p, "model.norm.weight", SHARD_1), f"{SHARD_1}: holds no tensor model.norm.weight"),
        (lambda p: map_to(p, "ghost", SHARD_1), f"{SHARD_1}: holds no tensor ghost"),
        (lambda p: map_to(p, "model.norm.weight", None), f"{SHARD_2}: holds model.norm.weight, which is not in"),
        (lambda p: map_to(p, "x", "../x.safetensors"), "names '../x.safetensors', which is no shard beside it"),
        (lambda p: map_to(p, "x", "config.json"), "names 'config.json', which is no shard"),
        (lambda p: map_to(p, "x", 5), "weight_map does not map tensors to files"),
        (lambda p: edit(p / "model.safetensors.index.json", weight_map={}), "weight_map does not map"),
        (lambda p: edit(p / "model.safetensors.index.json", metadata={"total_size": 3}), "says total_size 3, and the"),
        (lambda p: (p / "model.safetensors.index.json").unlink(), "has 2 shards and no model.safetensors.index.json"),
        (lambda p: (p / "model.safetensors.index.json").write_text("{"), "is not JSON"),
        (lambda p: shutil.copy(p / SHARD_1, p / "model-00003-of-00003.safetensors"), "a shard of another save. Delete"),
        (lambda p: shutil.copy(p / SHARD_1, p / SHARD_2), "holds no tensor"),
    ],
)
def test_index_and_shards_must_agree(tmp_path: Path, damage: Damage, message: str) -> None:
    damage(make.llama(tmp_path, 2))
    refused("checkpoint_hf", tmp_path, message)


def test_weights_of_another_library_beside_an_index_are_only_noted(tmp_path: Path) -> None:
    make.safetensors(make.llama(tmp_path, 2) / "consolidated.safetensors", {"a": (1,)})
    assert artifacts.validate("checkpoint_hf", tmp_path)["unused"] == ["consolidated.safetensors"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda p: (p / "pytorch_model.bin").touch(), "weights are pickles.*safe_serialization=True"),
        (lambda p: make.safetensors(p / "weights.safetensors", {"a": (1,)}), "has no model.safetensors"),
    ],
)
def test_other_weights_than_model_safetensors_are_refused_with_the_fix(tmp_path, place: Damage, message: str) -> None:
    make.llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    place(tmp_path)
    refused("checkpoint_hf", tmp_path, message)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda p: make.llama(p / "LATEST/model/consolidated"), "Name .*LATEST/model/consolidated"),
        (make.adapter, "it is an adapter. Merge it into its base with convert/merge_lora"),
        (make.megatron, "is a Megatron checkpoint. Convert it with convert/megatron_to_hf"),
        (lambda p: make.llama(p / "snapshots/abc"), "Name one of the directories in .*snapshots"),
        (lambda p: (p / "x").touch(), "has no config.json"),
        (shutil.rmtree, "no such file or directory"),
    ],
)
def test_a_directory_that_is_no_model_says_where_the_model_is(tmp_path: Path, place: Damage, message: str) -> None:
    place(tmp_path)
    refused("checkpoint_hf", tmp_path, message)


@pytest.mark.parametrize("model_type", ["brand_new", None, ["x"], 7])
def test_an_unknown_architecture_is_never_refused_for_its_shapes(tmp_path: Path, model_type: Any) -> None:
    make.llama(tmp_path, model_type=model_type, num_hidden_layers=9, hidden_size=100, vocab_size=10**6)
    facts = artifacts.validate("checkpoint_hf", tmp_path)
    assert any("lack 7 of 9 layers" in note for note in facts["notes"]) and len(facts["notes"]) <= 5


def test_names_and_sizes_that_nobody_foresaw_are_accepted(tmp_path: Path) -> None:
    shapes = {"a": (3, 2), "blocks.9999999999.w": (1,), "model.layers.99999999.x": (1,), "": (2,)}
    facts = artifacts.validate("checkpoint_hf", make.llama(tmp_path, shapes=shapes, model_type="odd"))
    assert facts["parameters"] == 10 and facts["embedding_rows"] is None


def test_a_hybrid_model_counts_its_layers_by_their_kinds(tmp_path: Path) -> None:
    config = {"model_type": "nemotron_h", "num_hidden_layers": None, "hybrid_override_pattern": "M*-"}
    refused("checkpoint_hf", make.llama(tmp_path, **config), "the weights lack 1 of 3 layers: 2")


def test_experts_are_counted(tmp_path: Path) -> None:
    shapes = {k: v for k, v in make.llama_tensors().items() if ".mlp." not in k}
    for layer in range(2):
        for expert in range(4 if layer == 0 else 3):
            shapes[f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"] = (4, 8)
    make.llama(tmp_path, shapes=shapes, model_type="qwen3_moe", num_experts=4, head_dim=2)
    refused("checkpoint_hf", tmp_path, "layer 1: the weights lack 1 of 4 experts: 3")


def test_a_quantized_model_is_described_and_its_packed_shapes_are_not_compared(tmp_path: Path) -> None:
    shapes = make.llama_tensors() | {"model.layers.0.mlp.up_proj.weight": (16, 4)}
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude": ["lm_head"]}
    make.llama(tmp_path, shapes=shapes, dtype="U8", quantization_config=quantization)
    facts = artifacts.validate("checkpoint_hf", tmp_path)
    assert facts["quantization"] == {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    assert checkpoint_hf.figures(facts)["quantization"] == "NVFP4"


def test_the_layout_of_the_hubs_cache_is_followed_and_bad_links_are_named(tmp_path: Path) -> None:
    make.llama(tmp_path / "plain", 2)
    snapshot = tmp_path / "models--org--m/snapshots/abc"
    (tmp_path / "models--org--m/blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for n, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        shutil.copy(file, tmp_path / f"models--org--m/blobs/{n}")
        (snapshot / file.name).symlink_to(f"../../blobs/{n}")
    whole = artifacts.validate("checkpoint_hf", snapshot)
    assert whole == artifacts.validate("checkpoint_hf", tmp_path / "plain")
    (snapshot / SHARD_1).unlink()
    (snapshot / SHARD_1).symlink_to("../../blobs/gone")
    refused("checkpoint_hf", snapshot, rf"{SHARD_1}: is a symbolic link to ../../blobs/gone, which is not there")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("config.json")
    refused("checkpoint_hf", snapshot, r"config\.json: is a symbolic link that leads back to itself")


def test_fingerprints_tell_tokenizers_and_templates_apart_and_nothing_else(tmp_path: Path) -> None:
    def marks(name: str, change: Damage) -> tuple[str, str]:
        change(make.llama(tmp_path / name))
        facts = artifacts.validate("checkpoint_hf", tmp_path / name)
        return facts["tokenizer_fingerprint"], facts["chat_template_fingerprint"]

    def rewrite(path: Path, merges: list[Any]) -> None:
        data = json.loads((path / "tokenizer.json").read_text())
        truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
        data |= {"truncation": truncation, "padding": None, "model": {**data["model"], "merges": merges}}
        (path / "tokenizer.json").write_text(json.dumps(dict(reversed(data.items())), indent=2))

    plain = marks("plain", lambda p: None)
    assert marks("respelled", lambda p: rewrite(p, ["t1 t2"])) == plain
    assert marks("other_merges", lambda p: rewrite(p, ["t2 t1"]))[0] != plain[0]
    assert marks("in_a_file", lambda p: (p / "chat_template.jinja").write_text(make.TEMPLATE)) == plain
    assert marks("other_file", lambda p: (p / "chat_template.jinja").write_text("x"))[1] != plain[1]
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": make.TEMPLATE}]
    assert marks("named", lambda p: edit(p / "tokenizer_config.json", chat_template=named)) == plain
    assert marks("none", lambda p: make.tokenizer(p, None)) == (plain[0], None)


class Panic(BaseException):
    """What the library's Rust code raises is no Exception."""


@pytest.mark.parametrize("error", [Panic("boom"), ValueError("boom")])
def test_where_the_library_is_there_the_tokenizer_must_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    class Library:
        @staticmethod
        def from_str(text: str) -> None:
            json.loads(text)
            raise error

    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=Library))
    refused("checkpoint_hf", make.llama(tmp_path), r"tokenizer\.json: does not load \(boom\)")


def test_other_tokenizers_are_checked_by_their_own_format(tmp_path: Path) -> None:
    def only(name: str, data: bytes) -> dict[str, Any]:
        folder = tmp_path / name.replace(".", "_") / str(len(data))
        make.llama(folder)
        (folder / "tokenizer.json").unlink()
        (folder / name).write_bytes(data)
        return artifacts.validate("checkpoint_hf", folder)

    sentencepiece = b"\x0a\x07\x0a\x03abc\x12\x00" * 5  # field 1: a message of 7 bytes
    assert only("tokenizer.model", sentencepiece)["tokenizer_size"] == 5
    assert only("tokenizer.model", b"YQ== 0\nYg== 1\n")["tokenizer_size"] == 2
    with pytest.raises(ArtifactError, match="no SentencePiece model, or was cut off"):
        only("tokenizer.model", sentencepiece[:-4])
    with pytest.raises(ArtifactError, match=r"neither merges\.txt nor tokenizer\.json"):
        only("vocab.json", b'{"a": 0}')


def test_nan_and_infinity_are_found_on_demand(tmp_path: Path) -> None:
    make.llama(tmp_path)
    assert checkpoint_hf.validate(tmp_path, finite=True)["parameters"]
    make.safetensors(tmp_path / "model.safetensors", make.llama_tensors(), fill=0xFF)  # every float is NaN
    assert checkpoint_hf.validate(tmp_path)["parameters"]
    with pytest.raises(ArtifactError, match=r"embed_tokens.weight has 96 elements that are NaN or infinite"):
        checkpoint_hf.validate(tmp_path, finite=True)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("F32", struct.pack("<f", 3e38), struct.pack("<f", math.inf)),
        ("F16", b"\xff\x7b", b"\x00\x7c"),
        ("BF16", b"\x7f\x7f", b"\x80\xff"),
        ("F8_E4M3", b"\x7e", b"\xff"),
    ],
)
def test_every_number_format_knows_its_infinities(tmp_path: Path, dtype: str, good: bytes, bad: bytes) -> None:
    entry = {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * len(good)]}
    header = _safetensors.read_header(make.raw(tmp_path / "m", {"w": entry}, good + bad + good), Problems())
    assert header is not None and list(_safetensors.nonfinite(header)) == [("w", 1)]


def test_reading_gives_the_place_of_every_tensor_and_pages_show_the_groups(tmp_path: Path) -> None:
    kind = artifact_type("checkpoint_hf", Project(None, tmp_path))
    model = kind.read(make.llama(tmp_path / "m", 2))
    assert model.config["model_type"] == "llama" and model.facts["shards"] == 2
    file, tensor = model.tensors()["model.norm.weight"]
    assert (file.name, tensor.shape, tensor.stop) == (SHARD_2, (8,), file.stat().st_size)
    columns = {name: (dtype, about) for name, dtype, about in kind.columns(model.facts)}
    assert columns["model.layers.*.mlp.up_proj.weight"] == ("F32", "16 × 8, 2 of them: 256")
    assert kind.figures(model.facts)["dtype"] == "F32" and "F32" in kind.tables(model.facts)["number formats"]
    assert (tmp_path / kind.draw(model.facts, tmp_path)[0]).read_bytes().startswith(b"\x89PNG")


# ---- damage


LAYOUTS: dict[str, Damage] = {
    "checkpoint_hf": lambda p: make.llama(p, 2),
    "checkpoint_megatron": lambda p: make.megatron(p, (5,), ranks=1),
    "checkpoint_lora": make.adapter,
}


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, type_name: str) -> None:
    LAYOUTS[type_name](tmp_path)
    rng = random.Random(1)
    for file in [p for p in sorted(tmp_path.rglob("*")) if p.is_file()]:
        whole = file.read_bytes()
        if file.name in ("latest_checkpointed_iteration.txt", "run_config.yaml"):
            continue  # text that is as good when it is shorter: the next test
        cuts = {0, 1, 7, 8, 9, len(whole) - 1, len(whole) // 2}
        for cut in sorted(cuts | {rng.randrange(len(whole)) for _ in range(12)}):
            file.write_bytes(whole[:cut])
            with pytest.raises(ArtifactError):
                artifacts.validate(type_name, tmp_path)
        file.write_bytes(whole)
    artifacts.validate(type_name, tmp_path)


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_flipped_bits_and_random_bytes_give_an_error_or_a_verdict_and_never_another_exception(
    tmp_path: Path, type_name: str
) -> None:
    LAYOUTS[type_name](tmp_path)
    rng = random.Random(2)
    refusals = verdicts = 0
    for file in [p for p in sorted(tmp_path.rglob("*")) if p.is_file()]:
        whole = file.read_bytes()
        for n in range(40):
            data = bytearray(whole)
            at = rng.randrange(len(data))
            if n % 4 == 3:
                data[at : at + 20] = rng.randbytes(rng.randrange(1, 30))
            else:
                data[at] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
            try:
                json.dumps(artifacts.validate(type_name, tmp_path))
                verdicts += 1
            except ArtifactError as e:
                assert str(tmp_path) in str(e)
                refusals += 1
        file.write_bytes(whole)
    assert refusals > 20 and verdicts > 5


def test_a_flipped_bit_in_a_weight_is_for_the_digests_to_find(tmp_path: Path) -> None:
    make.llama(tmp_path)
    before, facts = tally(tmp_path)[1], artifacts.validate("checkpoint_hf", tmp_path)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert artifacts.validate("checkpoint_hf", tmp_path) == facts
    assert tally(tmp_path)[1] != before


def test_twenty_problems_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    make.llama(tmp_path, 2)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(file, weight_map=index["weight_map"] | {f"ghost{n}": SHARD_1 for n in range(50)})
    text = refused("checkpoint_hf", tmp_path, "ghost0")
    assert text.count("holds no tensor") == 20 and "… and 30 more" in text
