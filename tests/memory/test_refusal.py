"""What is said where a device cannot hold a run, and the way it takes through the pipeline."""

import re
from dataclasses import replace

import pytest
import torch

from forcing_kv import MemoryLimitError, VideoPipeline
from forcing_kv.memory import (
    check_memory,
    plan_stream,
)
from forcing_kv.models import ModelPreset
from forcing_kv.policies import parse_policy
from forcing_kv.prompt_schedule import ScheduledPrompt
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import WAN_VAE, DecoderOptions
from forcing_kv.wan import WAN_1_3B, WAN_14B
from plans import planned

GB = 10**9
CPU = torch.device("cpu")


def refusal(stream, gigabytes, **settings):
    with pytest.raises(MemoryLimitError) as error:
        check_memory(stream, free_bytes=round(gigabytes * GB), **settings)
    return str(error.value)


def test_what_fits_is_silent():
    stream = planned()
    total = stream.need().total_bytes
    check_memory(stream, free_bytes=total)
    check_memory(stream, free_bytes=total - stream.need().model_bytes, loaded_bytes=stream.need().model_bytes)
    with pytest.raises(MemoryLimitError):
        check_memory(stream, free_bytes=total - 1)


def test_a_refusal_has_the_figures_and_the_flag_that_helps():
    message = refusal(planned(), 16)
    assert message == (
        "832x480 with policy forcing-kv needs 21.3 GB: weights 2.9, text encoder 11.4, VAE 4.6, cache 1.7, "
        "passes 0.285, headroom 0.616; cuda has 16.0 GB for it; it fits with --text-encoder-device cpu (9.9 GB); "
        "--skip-memory-check starts it all the same"
    )
    check_memory(planned(text_encoder_bytes=0), free_bytes=round(9.9 * GB))


def test_only_flags_that_help_are_named_each_with_its_figure():
    stream = planned(policy="full", num_chunks=27, text_encoder_bytes=0)
    message = refusal(stream, 24)
    assert re.findall(r"--\w+ \S+(?= \()", message) == ["--policy forcing-kv", "--seconds 8.81"]
    num_chunks = ModelPreset(name="any").num_chunks(int(8.81 * 16))
    check_memory(replace(stream, num_chunks=num_chunks), free_bytes=24 * GB)
    refusal(replace(stream, num_chunks=num_chunks + 1), 24)


def test_each_kind_of_flag():
    stream = planned(text_encoder_bytes=0)
    assert "with --dtype bfloat16 (9.9 GB);" in refusal(replace(stream, dtype=torch.float32), 13)
    hd = stream.at_resolution(1920, 1088)
    assert "with --resolution 720p (18.6 GB);" in refusal(hd, 30)
    assert "with --resolution 480p (9.9 GB);" in refusal(hd, 18)
    portrait = refusal(stream.at_resolution(720, 1280), 18)
    assert "with --resolution 480p-portrait (9.9 GB) or --kv-dtype int8 (16.7 GB);" in portrait
    assert "with num_videos=2 (" in refusal(replace(stream, batch_size=3), 18)
    by_policy = refusal(replace(stream, policy=parse_policy("window:window_frames=30")), 12)
    assert "with --policy forcing-kv (9.9 GB);" in by_policy


def test_another_dtype_is_the_decoders_too():
    """As the command line plans it: unless the decoder was given a dtype of its own."""
    wide = replace(planned(text_encoder_bytes=0), dtype=torch.float32)
    vae_dtype = DecoderOptions().planned(WAN_VAE, torch.float32, CPU)["vae_dtype"]
    assert "with --dtype bfloat16 (9.9 GB);" in refusal(replace(wide, vae_dtype=vae_dtype), 13)


def test_a_model_without_a_head_map_is_offered_the_window():
    stream = plan_stream(WAN_1_3B, ModelPreset(name="any"), policy="full", num_chunks=27)
    assert "with --policy window (11.9 GB) or --seconds " in refusal(stream, 16)


def test_flags_together():
    message = refusal(planned(policy="full", resolution=(1280, 720)), 12)
    assert "it fits with --policy forcing-kv --text-encoder-device cpu --resolution 480p (9.9 GB);" in message


def test_where_nothing_helps():
    message = refusal(planned(WAN_14B), 24)
    assert (
        "no flag makes it fit: it needs a device with 39.0 GB free, and --text-encoder-device cpu --kv-dtype int8;"
        in message
    )
    least = replace(planned(text_encoder_bytes=0), options=StreamOptions(kv_dtype="int8"))
    assert "no flag makes it fit: it needs a device with 9.1 GB free;" in refusal(least, 8)
    assert "it needs a device with " in refusal(planned(device=CPU), 8)


def test_a_proposed_policy_that_does_not_work_there_is_not_proposed():
    stream = planned(policy="full", text_encoder_bytes=0, num_chunks=27).at_resolution(848, 480)  # 1,590 tokens: / 6
    assert "--policy forcing-kv" in refusal(stream, 16)
    odd = planned(policy="full", text_encoder_bytes=0, num_chunks=27).at_resolution(880, 464)  # 1,595 tokens
    assert "--policy forcing-kv (" not in refusal(odd, 16)
    assert "--policy window (" in refusal(odd, 16)


# The pipeline


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder):
    return VideoPipeline.from_pretrained(tiny_model_folder, device="cpu")


def test_the_pipelines_need_is_what_its_stream_holds(pipeline):
    arguments = {"policy": "full", "num_frames": 57, "num_videos": 2, "resolution": (48, 32), "seed": 3}
    need = pipeline.memory_need("a red circle", **arguments)
    assert need.weights_bytes == sum(parameter.nbytes for parameter in pipeline.transformer.parameters())
    assert need.vae_weights_bytes == sum(parameter.nbytes for parameter in pipeline.vae.parameters())
    assert need.text_encoder_bytes == 0
    stream = pipeline.stream("a red circle", **arguments)
    for _ in stream:
        pass
    assert need.cache_bytes == stream.cache.nbytes
    assert need.decode_bytes > stream._decoder.nbytes


def test_the_plan_knows_when_the_prompt_may_change(pipeline):
    schedule = [ScheduledPrompt(text="a circle"), ScheduledPrompt(at_seconds=1, text="a square")]
    assert pipeline.plan("a circle", num_frames=9).recache_frames == 0
    assert pipeline.plan("a circle").recache_frames == 12
    assert pipeline.plan(schedule, num_frames=60).recache_frames == 12
    assert pipeline.plan(schedule, num_frames=60, recache_frames=4).recache_frames == 4
    assert pipeline.plan(["a circle", "a square"], num_frames=9).batch_size == 2
    assert pipeline.plan("a circle", decode=False).vae is None


def test_the_pipeline_refuses_before_anything_is_allocated(pipeline, monkeypatch):
    monkeypatch.setattr("forcing_kv.free_memory.free_bytes", lambda device: 2 * 10**6)
    monkeypatch.setattr("forcing_kv.pipeline.StreamCache", None)
    with pytest.raises(MemoryLimitError, match=r"96x64 with policy full needs .* GB: .* cpu has 0\.\d+ GB for it"):
        pipeline.stream("a circle", policy="full", num_frames=300)


def test_the_check_can_be_skipped(pipeline, monkeypatch):
    monkeypatch.setattr("forcing_kv.free_memory.free_bytes", lambda device: 0)
    assert next(pipeline.stream("a circle", resolution=(48, 32), check_memory=False)).index == 0


def test_a_normal_machine_holds_the_embedded_model(pipeline):
    pipeline.stream("a circle", resolution=(832, 480))
    assert VideoPipeline.from_pretrained(device="cpu").memory_need("x").total_bytes < 1.0 * GB
