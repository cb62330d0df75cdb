"""A checkpoint that is incomplete, damaged or somebody else's is refused by name; a sound one in any form is not."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from test_families import FAMILIES, _folder, _llava
from torch import Tensor

from xreasoner import cli
from xreasoner.errors import CheckpointError
from xreasoner.models.checkpoint_checks import nonfinite_problems
from xreasoner.models.export import export
from xreasoner.models.freezing import fingerprint, vision_tensors
from xreasoner.models.loading import Loaded, find, load
from xreasoner.tiny.checkpoints import reasoner_folder

Damage = Callable[[Path], Any]
State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded reasoner."""
    return Path(shutil.copytree(reasoner_folder(), tmp_path / "copy"))


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def change_weights(folder: Path, change: Callable[[State], State | None]) -> None:
    path = folder / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    changed = change(state)
    save_file(state if changed is None else changed, path, metadata={"format": "pt"})


def drop(part: str) -> Damage:
    def change(state: State) -> State:
        return {name: tensor for name, tensor in state.items() if part not in name}

    return lambda folder: change_weights(folder, change)


def rename(old: str, new: str) -> Damage:
    """Replace what names start with."""

    def change(state: State) -> State:
        return {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in state.items()}

    return lambda folder: change_weights(folder, change)


def reshape(part: str) -> Damage:
    def change(state: State) -> None:
        name = next(name for name in state if part in name)
        state[name] = state[name][:5].clone()

    return lambda folder: change_weights(folder, change)


def add(**tensors: Tensor) -> Damage:
    return lambda folder: change_weights(folder, lambda state: {**state, **tensors})


def untie(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False

    change_json(folder / "config.json", change)


def untie_and_drop_head(folder: Path) -> None:
    untie(folder)
    drop("lm_head")(folder)


def lora(folder: Path) -> None:
    """A peft model whose state was saved as it stood."""

    def change(state: State) -> None:
        name = next(name for name in state if name.endswith("layers.1.self_attn.q_proj.weight"))
        stem = name.removesuffix("weight")
        state[f"{stem}base_layer.weight"] = state.pop(name)
        state[f"{stem}lora_A.default.weight"] = torch.zeros(4, 192)
        state[f"{stem}lora_B.default.weight"] = torch.zeros(192, 4)

    change_weights(folder, change)


def shard(folder: Path, parts: int = 3) -> dict[str, str]:
    """Split the weights into files with an index, as large checkpoints are."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for k in range(parts):
        name = f"model-{k + 1:05d}-of-{parts:05d}.safetensors"
        part = dict(sorted(state.items())[k::parts])
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


def shard_then(change: Damage) -> Damage:
    def damage(folder: Path) -> None:
        shard(folder)
        change(folder)

    return damage


def unlist_shard(folder: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        kept = {name: file for name, file in index["weight_map"].items() if "00002" not in file}
        index["weight_map"] = kept

    change_json(folder / "model.safetensors.index.json", change)


def same_tensor_twice(folder: Path) -> None:
    first, second = (folder / f"model-0000{k}-of-00003.safetensors" for k in (1, 2))
    a, b = load_file(first), load_file(second)
    name = next(iter(a))
    save_file({**b, name: a[name] + 1}, second, metadata={"format": "pt"})


def whole_file_beside_shards(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)


def adapter_beside(folder: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "target_modules": ["q_proj"]}))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2)}, folder / "adapter_model.safetensors")


def adapter_alone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    adapter_beside(folder)


def adapter_instead_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    adapter_beside(folder)


def cut(name: str, size: int) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


def garble_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[20:60] = b"\xff" * 40
    path.write_bytes(data)


def add_token(folder: Path) -> None:
    """As `tokenizer.add_tokens` leaves it when the embeddings are not resized."""

    def change(settings: dict[str, Any]) -> None:
        entry = {**settings["added_tokens"][-1], "content": "<answer_is>", "special": False}
        rows = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
        settings["added_tokens"] += [{**entry, "id": rows}, {**entry, "content": "<so>", "id": rows + 1}]

    change_json(folder / "tokenizer.json", change)


def longer_vocabulary(folder: Path) -> None:
    """The tokenizer of a larger model of the same family."""

    def change(settings: dict[str, Any]) -> None:
        vocabulary = settings["model"]["vocab"]
        vocabulary |= {f"word{k}": len(vocabulary) + k for k in range(40)}

    change_json(folder / "tokenizer.json", change)


def no_eos_token(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", lambda settings: settings.pop("eos_token"))


def no_end(folder: Path) -> None:
    no_eos_token(folder)
    change_json(folder / "generation_config.json", lambda settings: settings.pop("eos_token_id"))


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


DAMAGED: dict[str, tuple[Damage, Iterable[str]]] = {
    "one layer missing": (
        drop("model.layers.2."),
        [r"12 tensors missing: model\.language_model\.layers\.2\.\S+, .* and 9 more", "copy it again"],
    ),
    "one tensor missing": (drop("layers.3.mlp.up_proj"), [r"1 tensor missing: \S+layers\.3\.mlp\.up_proj\.weight"]),
    "vision tower missing": (drop("visual.blocks."), [r"\d+ tensors missing: model\.visual\.blocks\.0"]),
    "merger missing": (drop("visual.merger."), [r"missing: model\.visual\.merger"]),
    "embeddings and head missing": (
        lambda folder: (drop("embed_tokens")(folder), drop("lm_head")(folder)),
        ["missing: .*embed_tokens"],
    ),
    "untied head missing": (untie_and_drop_head, [r"1 tensor missing: lm_head\.weight", "tie_word_embeddings to true"]),
    "final norm missing": (drop("model.norm."), [r"1 tensor missing: model\.language_model\.norm\.weight"]),
    "no tensor at all": (lambda folder: change_weights(folder, lambda state: {}), ["128 tensors missing|129 tensors"]),
    "unexpected tensor": (add(extra=torch.zeros(3)), ["1 tensor unexpected: extra"]),
    "another head": (add(**{"score.weight": torch.zeros(1, 192)}), [r"1 tensor unexpected: score\.weight"]),
    "other shape": (
        reshape("layers.0.mlp.down_proj"),
        [r"1 tensor of another shape: \S+down_proj\.weight is \[5, 512\], expected \[192, 512\]"],
    ),
    "other shape of the tower": (reshape("visual.merger.mlp.0.weight"), ["of another shape: model.visual.merger"]),
    "shape and layer": (
        lambda folder: (reshape("layers.0.mlp.down_proj")(folder), drop("model.layers.2.")(folder)),
        ["12 tensors missing", "1 tensor of another shape"],
    ),
    "peft's prefix": (
        rename("", "base_model.model."),
        ["unexpected: base_model.model", "peft's names.*merge_and_unload"],
    ),
    "compiled prefix": (rename("", "_orig_mod."), ["torch.compile's names"]),
    "data parallel prefix": (rename("", "module."), ["DataParallel's names"]),
    "doubled prefix": (rename("model.", "model.model."), ["doubled `model.`"]),
    "prefix missing": (rename("model.", ""), ["tensors missing", "tensors unexpected"]),
    "layers compiled one by one": (rename("model.layers.1.", "model.layers.1._orig_mod."), ["torch.compile's names"]),
    "wrapped by FSDP": (rename("model.layers.", "model.layers._fsdp_wrapped_module."), ["FSDP's names"]),
    "foreign prefix": (rename("model.", "policy."), ["tensors missing", "tensors unexpected: policy"]),
    "LoRA tensors inside": (lora, ["LoRA tensors: merge them", r"1 tensor missing: \S+layers\.1\.self_attn\.q_proj"]),
    "a shard missing": (
        shard_then(remove("model-00002-of-00003.safetensors")),
        [r"1 file of model\.safetensors\.index\.json missing: model-00002-of-00003\.safetensors, with 43 tensors"],
    ),
    "two shards missing": (
        shard_then(lambda folder: [(folder / f"model-0000{k}-of-00003.safetensors").unlink() for k in (1, 3)]),
        ["2 files of model.safetensors.index.json missing: model-00001-of-00003.safetensors, model-00003"],
    ),
    "a shard not listed": (
        shard_then(unlist_shard),
        [r"1 shard without an entry in an index: model-00002-of-00003\.safetensors"],
    ),
    "shards without their index": (
        shard_then(remove("model.safetensors.index.json")),
        ["3 shards without an entry in an index"],
    ),
    "a damaged index": (shard_then(write("model.safetensors.index.json", '{"weight_')), ["index.json is damaged"]),
    "an empty index": (shard_then(write("model.safetensors.index.json", "{}")), ["index.json is damaged"]),
    "a shard cut short": (shard_then(cut("model-00001-of-00003.safetensors", 5000)), ["00001.*damaged or cut short"]),
    "a tensor in two shards": (shard_then(same_tensor_twice), ["1 tensor in two files, as model-00001"]),
    "a whole file beside shards": (whole_file_beside_shards, ["model.safetensors beside shards .*remove one set"]),
    "weights cut short": (cut("model.safetensors", 100_000), [r"model\.safetensors is damaged or cut short"]),
    "weights cut in the header": (cut("model.safetensors", 500), ["damaged or cut short"]),
    "weights of no bytes": (cut("model.safetensors", 0), ["damaged or cut short"]),
    "weights with a garbled header": (garble_header, ["damaged or cut short"]),
    "a Git LFS pointer": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8329256\n"),
        ["damaged or cut short"],
    ),
    "no weights": (remove("model.safetensors"), ["holds no weights; expected model.safetensors"]),
    "adapter alone": (
        adapter_alone,
        ["this is an adapter and no model: its base is Qwen/Qwen2.5-VL-7B-Instruct", "merge_and_unload"],
    ),
    "adapter instead of weights": (adapter_instead_of_weights, ["holds no weights, only adapter_config.json"]),
    "adapter beside weights": (
        adapter_beside,
        ["an adapter for Qwen/Qwen2.5-VL-7B-Instruct lies beside the model's weights", "move these files"],
    ),
    "added tokens": (
        add_token,
        [r"2 tokens of the tokenizer beyond the model's 1,168 embedding rows: '<answer_is>' \(id 1168\), '<so>'"],
    ),
    "tokenizer of a larger model": (longer_vocabulary, ["40 tokens of the tokenizer beyond", "and 37 more"]),
    "image token unknown": (
        lambda folder: change_json(folder / "config.json", lambda config: config.update(image_token_id=9999)),
        ["image_token_id 9999, which the tokenizer does not have"],
    ),
    "no token that ends a reply": (no_end, ["the tokenizer has no eos_token", '"eos_token": "<|im_end|>"']),
    "no chat template": (remove("chat_template.jinja"), [r"no chat template; expected one in .*chat_template\.json"]),
    "a template that is no Jinja": (write("chat_template.jinja", "{% for %}"), ["chat template is no Jinja template"]),
    "limits of pixels crossed": (
        lambda folder: change_json(
            folder / "preprocessor_config.json", lambda found: found.update(min_pixels=90_000, max_pixels=10_000)
        ),
        ["min_pixels 90000 and max_pixels 10000; expected numbers with 0 < min_pixels"],
    ),
    "config of no object": (write("config.json", "[1, 2]"), ["config.json holds no JSON object"]),
    "config cut short": (cut("config.json", 100), ["config.json is damaged or cut short"]),
    "tokenizer cut short": (cut("tokenizer.json", 30_000), ["tokenizer.json is damaged or cut short"]),
    "several things at once": (
        lambda folder: (add_token(folder), drop("model.layers.2.")(folder), remove("chat_template.jinja")(folder)),
        ["2 tokens of the tokenizer beyond", "12 tensors missing", "no chat template"],
    ),
    "adapter and a missing layer": (
        lambda folder: (adapter_beside(folder), drop("visual.merger.")(folder)),
        ["an adapter for", "tensors missing: model.visual.merger"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_refused_by_name(damage: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, expected = DAMAGED[damage]
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for pattern in expected:
        assert re.search(pattern, message), message
    assert len(message) < 1500, "some names of each problem suffice"
    lines = capfd.readouterr().err.splitlines()
    assert not [line for line in lines if line and "Loading weights" not in line], "transformers' table is not shown"


COMMAND = {
    "ask": lambda model, out: ["ask", model, "What is 3 + 4?"],
    "eval": lambda model, out: ["eval", model, "--bench", "tiny-text-general", "--limit", "1", "--out", out],
    "train": lambda model, out: ["train", "demo", "--set", f"model={model}", "--out", out],
    "serve": lambda model, out: ["serve", model, "--port", "0"],
    "dry run": lambda model, out: ["train", "demo", "--set", f"model={model}", "--dry-run"],
}


@pytest.mark.parametrize(
    ("command", "damage"),
    [
        ("ask", "one layer missing"),
        ("eval", "vision tower missing"),
        ("train", "peft's prefix"),
        ("serve", "added tokens"),
        ("train", "adapter beside weights"),
        ("dry run", "a shard missing"),
        ("ask", "adapter alone"),
        ("train", "no token that ends a reply"),
    ],
)
def test_every_command_says_so_on_one_line(
    command: str, damage: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    DAMAGED[damage][0](folder)
    assert cli.run(COMMAND[command](str(folder), str(tmp_path / "out"))) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: model ")
    assert not list((tmp_path / "out").rglob("metrics.jsonl"))


# ---------------------------------------------------------------------------------------------------------------
# Sound checkpoints, in every form that users have


def bin_checkpoint(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def bin_shards(folder: Path) -> None:
    names = shard(folder)
    for name in sorted(set(names.values())):
        torch.save(
            load_file(folder / name), folder / name.replace("model", "pytorch_model").replace("safetensors", "bin")
        )
        (folder / name).unlink()
    index = {n: file.replace("model", "pytorch_model").replace("safetensors", "bin") for n, file in names.items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors.index.json").unlink()


def one_file_with_an_index(folder: Path) -> None:
    """As some converters write it."""
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def new_names(folder: Path) -> None:
    """The names that transformers has used since 4.52."""

    def change(state: State) -> State:
        def new(name: str) -> str:
            if name.startswith("visual."):
                return f"model.{name}"
            return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name

        return {new(name): tensor for name, tensor in state.items()}

    change_weights(folder, change)


def more_rows(folder: Path) -> None:
    """Embeddings padded to a multiple of 64 beyond the tokenizer, as Qwen's are."""

    def change(state: State) -> None:
        for name in [name for name in state if "embed_tokens" in name or "lm_head" in name]:
            state[name] = torch.cat([state[name], torch.zeros(64, 192)])

    change_weights(folder, change)

    def config(settings: dict[str, Any]) -> None:
        settings["text_config"]["vocab_size"] += 64

    change_json(folder / "config.json", config)


def old_buffers(folder: Path) -> None:
    """Rotary frequencies, which older versions stored with each layer."""
    names = [f"model.layers.{k}.self_attn.rotary_emb.inv_freq" for k in range(6)]
    change_weights(folder, lambda state: {**state, **{name: torch.ones(16) for name in names}})


def hidden_files(folder: Path) -> None:
    """What macOS, editors and notebooks leave behind."""
    for name in ("._model.safetensors", "._config.json", "._adapter_config.json", "._model.safetensors.index.json"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    (folder / ".DS_Store").write_bytes(b"\0" * 10)
    notebook = folder / ".ipynb_checkpoints"
    notebook.mkdir()
    shutil.copy(folder / "config.json", notebook / "config-checkpoint.json")
    (notebook / "model-00001-of-00002-checkpoint.safetensors").write_bytes(b"half")
    (folder / "._model-00001-of-00002.safetensors").write_bytes(b"half")


def files_of_others(folder: Path) -> None:
    (folder / "trainer_state.json").write_text('{"loss": NaN')
    (folder / "consolidated.safetensors").write_bytes(b"another form of the same weights")
    (folder / "training_args.bin").write_bytes(b"\x80")
    (folder / "README.md").write_text("# A model")


def template_in_processor_file(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()


def template_in_tokenizer_file(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    change_json(folder / "tokenizer_config.json", lambda settings: settings.update(chat_template=text))


SOUND: dict[str, Damage] = {
    "as it is": lambda folder: None,
    "head left out where it is tied": drop("lm_head"),
    "embeddings left out where the head is tied to them": drop("embed_tokens"),
    "untied with both": untie,
    "more embedding rows than tokens": more_rows,
    "shards": shard,
    "one file with an index": one_file_with_an_index,
    "pytorch_model.bin": bin_checkpoint,
    "pytorch_model.bin in shards": bin_shards,
    "newer names": new_names,
    "old buffers": old_buffers,
    "hidden files": hidden_files,
    "files of other programs": files_of_others,
    "template in chat_template.json alone": template_in_processor_file,
    "template in tokenizer_config.json alone": template_in_tokenizer_file,
}


@pytest.fixture(scope="module")
def sound() -> Loaded:
    return load("tiny")


@pytest.mark.parametrize("form", SOUND)
def test_a_sound_checkpoint_of_any_form_loads_whole(form: str, folder: Path, sound: Loaded) -> None:
    SOUND[form](folder)
    found = load(str(folder))
    assert find(str(folder)) == str(folder)
    ours, theirs = found.model.state_dict(), sound.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name][: len(theirs[name])], theirs[name]) for name in theirs)
    assert found.tokenizer.chat_template == sound.tokenizer.chat_template


class _Touch:
    """A pickle that runs a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": _Touch(tmp_path / "ran")}, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="holds more than tensors, which is never run"):
        load(str(folder))
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------------------------------------
# Every family


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [*FAMILIES, "llava"])
def test_a_missing_and_a_foreign_tensor_is_named_in_every_family(
    kind: str, random_folder: Path, tmp_path: Path
) -> None:
    whole = _llava(random_folder, tmp_path / kind) if kind == "llava" else _folder(kind, random_folder, tmp_path)
    load(str(whole))
    for k, (part, expected) in enumerate(
        [
            ("layers.1.", r"\d+ tensors? missing: .*layers\.1\."),
            ("vis", r"\d+ tensors missing: model\.vis"),
            ("lm_head", r"1 tensor missing: lm_head\.weight"),
        ]
    ):
        folder = Path(shutil.copytree(whole, tmp_path / f"damaged-{k}"))
        drop(part)(folder)
        with pytest.raises(CheckpointError, match=expected):
            load(str(folder))
    folder = Path(shutil.copytree(whole, tmp_path / "foreign"))
    rename("", "base_model.model.")(folder)
    with pytest.raises(CheckpointError, match="peft's names"):
        load(str(folder))


def test_a_missing_expert_is_named(random_folder: Path, tmp_path: Path) -> None:
    folder = _folder("qwen3_vl_moe", random_folder, tmp_path)
    drop("layers.1.mlp.experts")(folder)
    with pytest.raises(CheckpointError, match=r"missing: \S+layers\.1\.mlp\.experts"):
        load(str(folder))


# ---------------------------------------------------------------------------------------------------------------
# Frozen means proven; numbers that are not finite


def test_the_frozen_tower_that_is_proven_is_the_files_own(folder: Path, sound: Loaded) -> None:
    """A tower that a checkpoint lacks never gets as far as a proof; a whole one is the file's, bit for bit."""
    stored = load_file(folder / "model.safetensors")
    tower = vision_tensors(load(str(folder)).model)
    assert all(torch.equal(tensor, stored[name.removeprefix("model.")]) for name, tensor in tower)
    assert fingerprint(tower) == fingerprint(vision_tensors(sound.model))
    drop("visual.blocks.3.")(folder)
    with pytest.raises(CheckpointError, match=r"visual\.blocks\.3"):
        load(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value: float, folder: Path) -> None:
    def change(state: State) -> None:
        state["model.layers.4.mlp.up_proj.weight"][3, 7] = value
        state["visual.merger.ln_q.weight"][0] = value

    change_weights(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert "2 tensors with NaN or infinity in float32: model.language_model.layers.4.mlp.up_proj.weight" in message
    assert "model.visual.merger.ln_q.weight" in message
    assert "use an earlier checkpoint" in message


def test_what_float16_cannot_hold_says_which_dtype_can(folder: Path) -> None:
    def change(state: State) -> None:
        state["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e5

    change_weights(folder, change)
    load(str(folder))
    load(str(folder), dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in float16.*try dtype bfloat16 or float32"):
        load(str(folder), dtype=torch.float16)


def test_the_pass_over_the_weights_copies_none(loaded: Loaded) -> None:
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            for tensor in found if isinstance(found, tuple) else (found,):
                self.largest = max(self.largest, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return found

    loaded.model.requires_grad_(False)
    with Watch() as watch:
        assert nonfinite_problems(loaded.model) == []
    assert watch.largest == 1


def test_the_tokenizer_and_config_are_checked_before_any_weight_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_end(folder)
    read: list[str] = []
    original = safetensors.safe_open
    monkeypatch.setattr(
        "transformers.modeling_utils.safe_open", lambda *a, **more: read.append(more["device"]) or original(*a, **more)
    )
    monkeypatch.setattr("xreasoner.models.loading._add_tensor_problems", lambda *a: None)
    with pytest.raises(CheckpointError, match="eos_token"):
        load(str(folder))
    assert not read


def test_a_tokenizer_without_eos_token_answers_by_the_generation_config_and_is_not_trained(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    no_eos_token(folder)
    assert cli.run(["ask", str(folder), "What is 3 + 4?", "--budget", "40"]) == 0
    capfd.readouterr()
    assert cli.run(["train", "demo", "--set", f"model={folder}", "--out", str(tmp_path / "out")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "tokenizer has no eos_token" in line
    assert not list((tmp_path / "out").rglob("metrics.jsonl"))


# ---------------------------------------------------------------------------------------------------------------
# The image processor's limits


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({"size": {"min_pixels": 6272, "max_pixels": 25088}}, (6272, 25088)),
        ({"size": {"shortest_edge": 6272, "longest_edge": 25088}}, (6272, 25088)),
        ({"min_pixels": 6272, "max_pixels": 25088}, (6272, 25088)),
        ({"size": {"max_pixels": 25088}}, (3136, 25088)),
        ({"max_pixels": 25088}, (3136, 25088)),
        ({"min_pixels": 6272, "max_pixels": 25088, "size": {"shortest_edge": 1, "longest_edge": 9}}, (6272, 25088)),
        ({}, (3136, 1_003_520)),
    ],
)
def test_the_limits_of_an_images_area_are_read_in_every_form(
    settings: dict[str, Any], limits: tuple[int, int], folder: Path, tmp_path: Path
) -> None:
    def change(found: dict[str, Any]) -> None:
        for name in ("size", "min_pixels", "max_pixels"):
            found.pop(name, None)
        found.update(settings)

    change_json(folder / "preprocessor_config.json", change)
    loaded = load(str(folder))
    size = loaded.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == limits
    again = load(str(export(loaded.model, loaded.tokenizer, loaded.image_processor, tmp_path / "out")))
    assert again.image_processor.size == size
