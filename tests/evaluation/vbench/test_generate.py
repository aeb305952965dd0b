"""What is asked of the pipeline for a suite; the making itself is tested through the command."""

import json

import pytest

from forcing_kv.errors import ConfigurationError
from forcing_kv.evaluation.vbench.folder import BenchmarkFolder
from forcing_kv.evaluation.vbench.generate import SuiteProgress, parse_shard, suite_requests
from forcing_kv.evaluation.vbench.plan import SamplePlan
from forcing_kv.evaluation.vbench.suite import parse_suite
from stand_in_vbench import SUITE


def test_requests(tmp_path):
    suite = parse_suite(json.dumps(SUITE).encode(), where="-")
    plan = SamplePlan(dimensions=suite.dimensions, samples=2, flickering_samples=4)
    longer = {prompt.text: f"{prompt.text}, at great length" for prompt in suite.prompts}
    settings = {"seed": 3, "augmented": longer, "num_frames": 21, "policy": "full"}
    requests = suite_requests(BenchmarkFolder(tmp_path), suite, plan, **settings)
    assert len(requests) == 8
    assert requests[4].path == tmp_path / "videos" / "A blue square, in the style of Ukiyo-1.mp4"
    assert requests[4].title == "A blue square, in the style of Ukiyo, at great length"
    assert [request.seed for request in requests] == [3, 3, 3, 4, 4, 4, 5, 6]
    assert {(request.num_frames, request.policy) for request in requests} == {(21, "full")}
    for num_parts in (1, 3, 8, 9):
        shards = [
            suite_requests(BenchmarkFolder(tmp_path), suite, plan, shard=(part, num_parts), **settings)
            for part in range(num_parts)
        ]
        paths = [request.path for shard in shards for request in shard]
        assert sorted(paths) == sorted(request.path for request in requests)
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shards():
    assert [parse_shard(text) for text in ("1/1", "2/3", " 8/8 ")] == [(0, 1), (1, 3), (7, 8)]
    for text in ("0/2", "3/2", "1", "1/0", "-1/2", "a/b", ""):
        with pytest.raises(ConfigurationError, match="is no part of a whole: write 1/4"):
            parse_shard(text)


def test_size_of_all_judged_by_those_there_are():
    assert SuiteProgress(videos_done=4, num_videos=10, bytes_done=1000).bytes_in_all == 2500
    assert SuiteProgress(videos_done=0, num_videos=10, bytes_done=0).bytes_in_all is None
