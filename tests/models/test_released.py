"""Every released checkpoint: its preset, and its container and names at a small size."""

import hashlib
import warnings

import pytest
import torch

from checkpoints import LORA_RANK, SMALL, fsdp_names, prefixed, random_lora, random_weights, with_lora, write_released
from forcing_kv import (
    CheckpointError,
    ConfigurationError,
    OutputError,
    SnapshotError,
    UnknownNameError,
    VideoPipeline,
    parse_policy,
)
from forcing_kv.models import (
    RELEASED_MODELS,
    LicenceWarning,
    find_model,
    list_models,
    published_head_map,
    save_transformer,
)
from forcing_kv.models.checkpoint import lazy
from forcing_kv.wan import WAN_1_3B, WAN_14B

CPU = torch.device("cpu")


def loaded(source, dtype=torch.float32):
    return source.load_transformer(dtype=dtype, device=CPU).state_dict()


def assert_same(weights, expected, *, exactly=True):
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        if exactly:
            assert torch.equal(weights[name], tensor.float()), name
        else:
            torch.testing.assert_close(weights[name], tensor.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_every_release_loads_tensor_for_tensor(name, tmp_path):
    release = write_released(name, tmp_path)
    assert_same(loaded(release.source()), release.expected, exactly=release.lora is None)


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_a_copy_of_the_repository_is_enough(name, tmp_path):
    release = write_released(name, tmp_path)
    weights = loaded(release.source())
    for folder in (tmp_path, release.weights.parent):
        assert_same(loaded(release.source(weights=folder, lora=None)), weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_floats_convert(dtype, tmp_path):
    release = write_released("raven-1.3b", tmp_path)
    weights = loaded(release.source(), dtype)
    assert all(torch.equal(weights[name], tensor.to(dtype)) for name, tensor in release.expected.items())


@pytest.mark.parametrize(
    "names",
    [
        lambda lora: lora,
        lambda lora: prefixed(lora, "base_model.model."),
        lambda lora: {"generator_lora": prefixed(lora, "base_model.model.")},
        lambda lora: {"generator_lora": lora},
        lambda lora: {name.replace(".weight", ".default.weight"): tensor for name, tensor in lora.items()},
        lambda lora: fsdp_names(prefixed(lora, "base_model.model.")),
    ],
    ids=["bare", "peft", "nested-peft", "nested-bare", "adapter-name", "fsdp"],
)
def test_every_spelling_of_a_lora(names, tmp_path):
    release = write_released("longlive-1.3b", tmp_path)
    torch.save(names(random_lora(random_weights())), release.lora)
    assert_same(loaded(release.source()), release.expected, exactly=False)


def test_a_base_in_every_nesting(tmp_path):
    release = write_released("longlive-1.3b", tmp_path)
    weights = random_weights()
    for nesting in ("generator", "generator_ema", "model"):
        torch.save({nesting: prefixed(weights, "model.")}, release.weights)
        assert_same(loaded(release.source()), release.expected, exactly=False)


def test_a_lora_that_is_missing_or_partial_is_an_error(tmp_path):
    release = write_released("longlive-1.3b", tmp_path)
    lora = random_lora(random_weights())
    partial = {name: tensor for name, tensor in lora.items() if not name.startswith("blocks.1.ffn")}
    torch.save(partial, release.lora)
    with pytest.raises(CheckpointError, match=r"missing blocks.1.ffn.0.weight; missing blocks.1.ffn.2.weight"):
        loaded(release.source())
    torch.save({name: tensor for name, tensor in lora.items() if name != "blocks.0.ffn.0.lora_B.weight"}, release.lora)
    with pytest.raises(CheckpointError, match=r"incomplete: blocks.0.ffn.0.weight lacks lora_B"):
        loaded(release.source())
    torch.save({name: tensor[:, :5] for name, tensor in lora.items()}, release.lora)
    with pytest.raises(CheckpointError, match=r"the LoRA .* does not fit"):
        loaded(release.source())
    with pytest.raises(CheckpointError, match="holds no LoRA"):
        loaded(release.source(lora=release.weights))
    with pytest.raises(CheckpointError, match="holds a LoRA only"):
        loaded(release.source(weights=release.lora, lora="none"))
    release.lora.unlink()
    with pytest.raises(ConfigurationError, match="give it with --lora FILE, or say --lora none"):
        release.source(lora=None)
    assert_same(loaded(release.source(lora="none")), random_weights())


def test_a_lora_of_the_users_own(tmp_path):
    release = write_released("self-forcing-1.3b", tmp_path)
    lora = {name: tensor for name, tensor in random_lora(release.expected).items() if "self_attn.q" in name}
    path = tmp_path / "mine" / "adapter.pt"
    path.parent.mkdir()
    torch.save(lora, path)
    assert_same(loaded(release.source(lora=path)), with_lora(release.expected, lora, 1.0), exactly=False)
    (path.parent / "adapter_config.json").write_text('{"lora_alpha": 6, "r": 3}')
    expected = with_lora(release.expected, lora, 6 / LORA_RANK)
    assert_same(loaded(release.source(lora=path)), expected, exactly=False)


def test_a_lora_packed_with_its_base(tmp_path):
    weights = random_weights()
    lora = random_lora(weights)
    linears = {name.split(".lora_")[0] for name in lora}
    packed = {
        name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        if name.rpartition(".")[0] in linears
        else name: tensor
        for name, tensor in weights.items()
    }
    torch.save(prefixed(packed | lora, "base_model.model."), tmp_path / "packed.pt")
    release = write_released("raven-1.3b", tmp_path)
    source = release.source(weights=tmp_path / "packed.pt")
    assert_same(loaded(source), with_lora(weights, lora, 1.0), exactly=False)


def test_presets_are_the_published_facts():
    facts = {
        name: (model.config, model.preset.chunk_frames, model.preset.sampler.timesteps, model.preset.licence)
        for name, model in RELEASED_MODELS.items()
    }
    warped = tuple(1000 * 5 * s / (1 + 4 * s) for s in (1, 0.75, 0.5, 0.25))
    for name, (config, chunk_frames, timesteps, licence) in facts.items():
        assert config == (WAN_14B if "14b" in name else WAN_1_3B)
        assert chunk_frames == (1 if "framewise" in name else 3)
        expected = (1000, 937, 833, 625) if "krea" in name else warped
        assert timesteps == pytest.approx(expected, rel=1e-12)
        nc = {"raven-1.3b": "CC-BY-NC-4.0", "krea-realtime-14b": "CC-BY-NC-SA-4.0"}
        assert licence == nc.get(name, "Apache-2.0")


@pytest.mark.parametrize("source", list_models(), ids=lambda source: source.preset.name)
def test_the_default_policy_of_every_model_works_at_its_own_size(source):
    geometry = source.preset.geometry(source.config)
    policy = parse_policy(source.preset.default_policy, head_map=source.head_map)
    policy.check(geometry)
    if source.head_map is None:
        assert source.preset.name == "causal-forcing-1.3b-framewise"
        mine = parse_policy("forcing-kv", head_map=published_head_map("self-forcing-1.3b"))  # once it is calibrated
        mine.check(geometry)
        return
    assert policy.name == "forcing-kv"
    settings = (policy.sink_frames, policy.static_recent_frames, policy.dynamic_recent_frames, policy.warmup_chunks)
    special = {"krea-realtime-14b": (0, 1, 3, 2), "longlive-1.3b": (1, 1, 1, 3)}
    assert settings == special.get(source.preset.name, (1, 1, 1, 2))
    assert policy.similarity_pruning == (source.preset.name != "krea-realtime-14b")


@pytest.mark.parametrize(
    ("name", "num_static", "digest"),
    [
        ("self-forcing-1.3b", 134, "908613a0e8bf289c"),
        ("longlive-1.3b", 154, "421543e3ca4a7ee1"),
        ("krea-realtime-14b", 800, "01d8aca16ab15654"),
    ],
)
def test_published_head_maps(name, num_static, digest):
    head_map = published_head_map(name)
    assert head_map.num_static == num_static
    assert hashlib.sha256("".join(head_map.roles).encode()).hexdigest()[:16] == digest
    for model in RELEASED_MODELS.values():
        if model.head_map == name:
            head_map.check_fits(num_layers=model.config.num_layers, num_heads=model.config.num_heads)
    with pytest.raises(UnknownNameError, match="unknown head map 'x'; choose one of: krea-realtime-14b"):
        published_head_map("x")


def test_non_commercial_licences_are_named():
    for name, model in RELEASED_MODELS.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            find_model(name).warn_of_licence()
        texts = [str(warning.message) for warning in caught if warning.category is LicenceWarning]
        if "-NC-" in model.preset.licence:
            assert texts == [f"the weights of {name} are licensed {model.preset.licence}: not for commercial use"]
        else:
            assert not texts


def test_a_converted_longlive_needs_no_lora(tmp_path):
    release = write_released("longlive-1.3b", tmp_path / "hub")
    source = release.source()
    folder = tmp_path / "saved"
    save_transformer(folder, preset=source.preset, config=SMALL, weights=source.open_weights())
    assert_same(loaded(release.source(weights=folder, lora=None)), loaded(source))


def test_saved_weights_lie_in_shards_where_they_are_large(tmp_path):
    weights = random_weights()
    source = write_released("raven-1.3b", tmp_path / "hub").source()
    lazily = {name: lazy(tensor) for name, tensor in weights.items()}
    save_transformer(tmp_path / "saved", preset=source.preset, config=SMALL, weights=lazily, max_shard_bytes=100_000)
    files = list((tmp_path / "saved" / "transformer").glob("*.safetensors"))
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) < 120_000
    assert_same(loaded(find_model(tmp_path / "saved")), weights)


def test_a_pipeline_from_a_release(tmp_path, tiny_model_folder):
    """Every part but the sizes as a user has it: released file, published preset, components in a folder."""
    config = find_model(tiny_model_folder).config
    torch.save({"generator_ema": prefixed(random_weights(config), "model.")}, tmp_path / "mine.pt")
    from dataclasses import replace

    source = find_model("self-forcing-1.3b", weights=tmp_path / "mine.pt", components=tiny_model_folder)
    pipeline = VideoPipeline.from_source(replace(source, config=config, head_map=None), dtype="float32")
    frames = pipeline.generate("a red circle", num_frames=9, resolution=(96, 64), policy="window")
    assert frames.shape == (1, 9, 64, 96, 3)


def test_weights_are_told_apart_by_content(tmp_path):
    """Two fine-tunes have the same size; a file keeps its label when it is copied or touched."""
    labels = []
    for number, value in enumerate((0.0, 0.0, 1.0)):
        path = tmp_path / str(number) / "mine.pt"
        path.parent.mkdir()
        torch.save({name: torch.full_like(tensor, value) for name, tensor in random_weights().items()}, path)
        labels.append(find_model("raven-1.3b", weights=path).weights_label())
    assert labels[0].startswith("mine.pt (")
    assert labels[0] == labels[1] != labels[2]
    longlive = "Efficient-Large-Model/LongLive-1.3B: models/"
    assert find_model("longlive-1.3b").weights_label() == f"{longlive}longlive_base.pt + {longlive}lora.pt"


def test_a_run_does_not_go_on_with_other_weights(tmp_path, tiny_model_folder):
    from forcing_kv.generation import VideoRequest, check_made_alike, generate_video
    from forcing_kv.prompt_schedule import prompt_schedule

    other = save_other_weights(tiny_model_folder, tmp_path / "other.pt")
    ours = VideoPipeline.from_pretrained(tiny_model_folder)
    theirs = VideoPipeline.from_pretrained(tiny_model_folder, weights=other)
    request = VideoRequest(prompts=prompt_schedule("a red circle"), path=tmp_path / "v.mp4", num_frames=9)
    report = generate_video(ours, request)
    assert report.weights == ours.weights
    check_made_alike(ours, request)
    with pytest.raises(OutputError, match=r"is finished, with weights 'transformer \(.*\)', not 'other.pt \("):
        check_made_alike(theirs, request)
    snapshot = ours.stream("a red circle").snapshot()
    with pytest.raises(SnapshotError, match="the snapshot was made with weights='transformer"):
        theirs.stream("a red circle").restore(snapshot)


def save_other_weights(folder, path):
    torch.save(random_weights(find_model(folder).config), path)
    return path
