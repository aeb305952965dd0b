"""Every tensor and index of a goldens folder, through the public classes.

The folder is `FORCING_KV_GOLDENS`, or the copy in `tests/goldens`. The goldens were computed independently of this
code, in float32.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forcing_kv import ForcingKV, FrameGeometry, Full, HeadMap, StreamCache, VideoStream, Window
from forcing_kv.geometry import start_seconds
from forcing_kv.models import find_model
from forcing_kv.prompt_schedule import ScheduledPrompt
from forcing_kv.sampling import FewStepSampler, FlowSchedule
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

GOLDENS = Path(os.environ.get("FORCING_KV_GOLDENS", Path(__file__).parent / "goldens"))
DOCUMENT = json.loads((GOLDENS / "cases.json").read_text())
FPS = 16
TOLERANCE = 1e-4


class RecordedNoise:
    """Plays back a golden's noise: per chunk its own, then one for each renoising step."""

    def __init__(self, noise, renoise, chunk_frames):
        self.draws = []
        for chunk, steps in zip(noise.split(chunk_frames, dim=1), renoise.split(chunk_frames, dim=1), strict=True):
            self.draws += [chunk, *steps.unbind(2)]

    def draw(self):
        return self.draws.pop(0)


def head_map(case):
    roles = []
    for layer in sorted(case["heads"], key=lambda entry: entry["layer_idx"]):
        letters = dict.fromkeys(layer["static_head"], "s") | dict.fromkeys(layer["dynamic_head"], "d")
        roles.append("".join(letters[head] for head in range(len(letters))))
    return HeadMap(model="golden", roles=tuple(roles))


def policy(case):
    if case["policy"] == "forcing_kv":
        return ForcingKV(
            head_map=head_map(case),
            sink_frames=case["sink_frames"],
            static_recent_frames=case["static_local_frames"],
            dynamic_recent_frames=case["dynamic_local_frames"],
            segments_per_frame=case["segments_per_frame"],
            selected_segments=case["dynamic_budget_frames"] * case["segments_per_frame"],
            similarity_pruning=case["similarity_pruning"],
            warmup_chunks=case["ar_start"] + 1,
        )
    if case["window_frames"]:
        return Window(window_frames=case["window_frames"], sink_frames=case["sink_frames"])
    return Full()


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")),
]


@pytest.fixture(scope="module", params=DEVICES)
def transformer(request, tmp_path_factory):
    """The goldens' weights, in the container of a release, through the loading that every model goes through."""
    path = tmp_path_factory.mktemp("goldens") / "self_forcing_dmd.pt"
    weights = load_file(GOLDENS / "transformer.safetensors")
    torch.save(
        {"generator_ema": {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in weights.items()}}, path
    )
    config = TransformerConfig(**DOCUMENT["transformer"])
    source = replace(find_model("self-forcing-1.3b", weights=path), config=config)
    return source.load_transformer(dtype=torch.float32, device=torch.device(request.param))


def assert_close(name, actual, expected):
    error = (actual - expected).norm() / expected.norm()
    assert actual.shape == expected.shape, name
    assert error <= TOLERANCE, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("heads_side_by_side", [False, True], ids=["heads-as-numbered", "heads-side-by-side"])
@pytest.mark.parametrize("name", DOCUMENT["cases"])
def test_golden(name, transformer, heads_side_by_side):
    case = DOCUMENT["cases"][name]
    golden = load_file(GOLDENS / f"{name}.safetensors", device=str(transformer.device))
    chunk_frames = golden["flow.0.0"].shape[1]
    _, patch_rows, patch_cols = transformer.config.patch_size
    geometry = FrameGeometry(
        num_layers=transformer.config.num_layers,
        num_heads=transformer.config.num_heads,
        head_dim=transformer.config.head_dim,
        frame_rows=case["latent_h"] // patch_rows,
        frame_cols=case["latent_w"] // patch_cols,
        chunk_frames=chunk_frames,
    )
    rule = policy(case)
    natural = CausalWanTransformer(transformer.config).head_order
    transformer.set_head_order(rule.plan(geometry, grouped=True).head_order() if heads_side_by_side else natural)
    sampler = FewStepSampler(
        steps=tuple(case["denoising_step_list"]), warped=case["warp"], schedule=FlowSchedule(shift=case["shift"])
    )
    torch.testing.assert_close(torch.tensor(sampler.timesteps), golden["timesteps"].cpu(), rtol=1e-6, atol=0)

    switches = [start_seconds(frame, FPS) for frame in case.get("switch_frames", [])]
    stream = VideoStream(
        transformer=transformer,
        cache=StreamCache(
            geometry, rule, batch_size=case["batch"], device=transformer.device, head_order=transformer.head_order
        ),
        sampler=sampler,
        noise=RecordedNoise(golden["noise"], golden["renoise"], chunk_frames),
        encode_prompt=lambda texts: golden[texts[0]].expand(len(texts), -1, -1),
        prompts=tuple(ScheduledPrompt(at_seconds=at, text=f"context.{i}") for i, at in enumerate([0.0, *switches])),
        num_chunks=case["frames"] // chunk_frames,
        recache_frames=case.get("recache_frames", 12),
        keep_sink=case.get("keep_sink", False),
        fps=FPS,
    )
    velocities = []
    recorder = transformer.register_forward_hook(
        lambda module, args, output: velocities.append(output) if args[1].max() > 0 else None
    )
    try:
        checked = {"timesteps", "noise", "renoise"} | {key for key in golden if key.startswith("context.")}
        latents = []
        for chunk in stream:
            latents.append(chunk.latents)
            for step, velocity in enumerate(velocities):
                key = f"flow.{chunk.index}.{step}"
                if key in golden:
                    assert_close(key, velocity, golden[key])
                    checked.add(key)
            velocities.clear()
            selection = stream.cache.last_selection
            key = f"segments.{chunk.index}"
            assert (selection is not None) == (key in golden), f"chunk {chunk.index} selects"
            if selection is not None:
                expected = golden[key]
                batch = len(expected) if expected.ndim == 2 else 1
                assert torch.equal(selection.segments[:batch].view(expected.shape), expected), key
                scores = golden[f"scores.{chunk.index}"]
                assert_close(f"scores.{chunk.index}", selection.scores[:batch].view(scores.shape), scores)
                checked |= {key, f"scores.{chunk.index}"}
    finally:
        recorder.remove()

    assert_close("x0", torch.cat(latents, dim=1), golden["x0"])
    checked.add("x0")
    if "cached_tokens" in golden:
        roles = head_map(case).roles
        for layer, (static_tokens, dynamic_tokens) in enumerate(golden["cached_tokens"].tolist()):
            for head, tokens in stream.cache.history_tokens(layer).items():
                assert tokens == (static_tokens if roles[layer][head] == "s" else dynamic_tokens), (layer, head)
        checked.add("cached_tokens")
    assert checked == set(golden), "a tensor of the golden was not compared"
