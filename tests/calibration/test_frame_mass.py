import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from forcing_kv.calibration import FrameMassMemory, measure_frame_mass
from forcing_kv.errors import ConfigurationError
from forcing_kv.heads import HeadMap
from forcing_kv.pipeline import VideoPipeline

FRAME_TOKENS = 4
CHUNK_TOKENS = 3 * FRAME_TOKENS


def memory(num_layers=1, sink_frames=3):
    return FrameMassMemory(num_layers=num_layers, frame_tokens=FRAME_TOKENS, sink_frames=sink_frames, newest_frames=4)


def random_qkv(generator, batch=2, heads=3):
    return (torch.randn(batch, CHUNK_TOKENS, heads, 8, generator=generator) for _ in range(3))


def test_it_attends_like_a_full_cache_and_reading_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    ours = memory()
    keys, values = [], []
    for _ in range(3):
        for is_commit in (False, False, True):
            q, k, v = random_qkv(generator)
            out = ours.attend(0, q, k, v)
            all_keys, all_values = torch.cat([*keys, k], dim=1), torch.cat([*values, v], dim=1)
            dense = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, all_keys, all_values)))
            torch.testing.assert_close(out, dense.transpose(1, 2))
            if is_commit:
                ours.commit()
                keys.append(k)
                values.append(v)


def test_uniform_attention_scores_the_share_of_frames():
    ours = memory()
    zeros = torch.zeros(1, CHUNK_TOKENS, 2, 8)
    for chunk in range(5):
        ours.measuring = chunk >= 3  # 12 and 15 frames read, 3 of them sink
        ours.attend(0, zeros, zeros, zeros)
        ours.commit()
    assert ours.scores()[0] == pytest.approx([(4 / 9 + 4 / 12) / 2] * 2)


def test_a_head_that_looks_at_itself_scores_one_and_one_that_looks_back_scores_nothing():
    ours = memory()
    for chunk in range(4):
        key = torch.zeros(1, CHUNK_TOKENS, 2, 8)
        key[:, :, 0, chunk] = 1  # head 0 looks for this chunk's mark
        key[:, :, 1, 0] = float(chunk == 1)  # head 1 looks for chunk 1's, frames 3 to 5
        query = torch.zeros_like(key)
        query[:, :, 0, chunk] = 400
        query[:, :, 1, 0] = 400
        ours.measuring = chunk == 3
        ours.attend(0, query, key, key)
        ours.commit()
    assert ours.scores()[0] == pytest.approx([1.0, 0.0], abs=1e-5)


def test_no_measured_pass_is_an_error():
    with pytest.raises(ConfigurationError, match="no pass was measured"):
        memory().scores()


def test_the_map_of_a_model_does_not_depend_on_where_its_heads_lie(tiny_model_folder):
    pipeline = VideoPipeline.from_pretrained(tiny_model_folder)
    config = pipeline.transformer.config
    prompts = ["a red circle", "a blue square"]
    with pytest.raises(ConfigurationError, match="3 chunks of 3 frames never read 12 frames; use at least 4"):
        measure_frame_mass(pipeline, prompts, num_chunks=3)
    natural = [list(range(config.num_heads))] * config.num_layers
    pipeline.transformer.set_head_order(natural)
    first = measure_frame_mass(pipeline, prompts, num_chunks=4, seed=3)
    pipeline.transformer.set_head_order([list(reversed(range(config.num_heads)))] * config.num_layers)
    second = measure_frame_mass(pipeline, prompts, num_chunks=4, seed=3)
    assert isinstance(first, HeadMap)
    assert torch.tensor(first.scores) == pytest.approx(torch.tensor(second.scores), abs=2e-4)
    first.check_fits(num_layers=config.num_layers, num_heads=config.num_heads)
    assert first.provenance["min_read_frames"] == 12
    assert all(0 < score < 1 for row in first.scores for score in row)
