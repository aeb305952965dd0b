"""The page is one file that a browser reads without help: every tag closed, nothing fetched, every video there."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import av
import numpy as np
import pytest

from comparisons import compared, measured
from forcing_kv.errors import ConfigurationError
from forcing_kv.evaluation import check_page_available, summarise, write_page
from forcing_kv.evaluation.preview import MAX_WIDTH, preview
from forcing_kv.video import probe

VOID = {"meta", "br", "wbr", "link", "img"}


class Page(HTMLParser):
    """Parses strictly: what is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    rights = {"colour": True, "shape": True}
    videos = {
        "full": [measured(is_reference=True, rights=rights, rng=rng) for _ in range(7)],
        "window": [measured(flow=2, rights={**rights, "shape": False}, rng=rng) for _ in range(7)],
        "window:window_frames=9,sink_frames=0": [measured(rights=rights, rng=rng) for _ in range(7)],
    }
    summary = summarise(compared(videos, folder, not_judged={3: "it has <no> word"}))
    return Page(write_page(summary, folder).read_text(encoding="utf-8"))


def test_nothing_is_fetched(page):
    for _, attrs in page.tags:
        for name in ("src", "href", "poster", "data", "srcset"):
            assert attrs.get(name, "data:").startswith("data:"), attrs


def test_every_video_is_there_and_can_be_decoded(page):
    videos = page.all("video")
    assert len(videos) == 3 * 3
    for attrs in videos:
        assert {"muted", "loop", "playsinline", "controls"} <= attrs.keys()
        kind, _, content = attrs["src"].partition(";base64,")
        assert kind == "data:video/mp4"
        with av.open(io.BytesIO(base64.b64decode(content, validate=True))) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 48, 32)
            assert sum(1 for _ in container.decode(stream)) == 45


def test_it_says_what_it_shows(page):
    text = " ".join(" ".join(page.text).split())
    assert "What cache policies do to the videos of made-up" in text
    assert "prompt <" in text  # escaped in the file, and so read as it is
    assert "No world score for “prompt <3> & more”: it has <no> word" in text
    assert "lpips was left out: LPIPS needs lpips" in text
    for title in ("World score", "PSNR", "SSIM", "Latent cosine", "Motion amplitude", "Boundary jump", "Colour drift"):
        assert title in text
    assert "higher is better" in text
    assert "lower is better" in text
    assert text.count("DIS (OpenCV)") >= 4  # beside every figure that rests on it
    assert "▼ worse" in text
    assert "◆ different" in text
    assert "2000 resamples" in text
    for role in ("Best", "Median", "Worst"):
        assert f"{role}: “prompt <" in text


def test_it_says_how_all_caches_are_stored(page, tmp_path):
    assert "All of them, the reference too" not in " ".join(page.text)
    made_up = compared({"full": [measured(1, is_reference=True)], "window": [measured(1)]}, tmp_path)
    settings = {**made_up.settings, "kv_dtype": "fp8", "step_cache": 0.2, "steps_skipped": 1}
    text = write_page(summarise(replace(made_up, settings=settings)), tmp_path).read_text(encoding="utf-8")
    assert "the cache stored as fp8 and a step cache at 0.2 (1 of 4 steps left out)." in " ".join(text.split())


def test_pictures_are_well_formed(page, tmp_path):
    videos = {"full": [measured(is_reference=True)] * 2, "window": [measured(), measured(flow=3.0)]}
    text = write_page(summarise(compared(videos, tmp_path)), tmp_path).read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) >= 15
    for drawing in drawings:
        for element in ElementTree.fromstring(drawing).iter():
            assert not any(word in value for value in element.attrib.values() for word in ("nan", "inf"))


def test_it_is_made_for_light_and_dark_and_for_a_keyboard(page, tmp_path):
    videos = {"full": [measured(is_reference=True)], "window": [measured()]}
    text = write_page(summarise(compared(videos, tmp_path)), tmp_path).read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "prefers-reduced-motion" in text
    assert [attrs["data-policy"] for attrs in page.all("button") if "data-policy" in attrs] == ["p0", "p1", "p2"]


def test_more_policies_than_colours(tmp_path):
    videos = {"full": [measured(1, is_reference=True)]}
    videos |= {f"window:window_frames={frames}": [measured(1)] for frames in range(7, 19)}
    Page(write_page(summarise(compared(videos, tmp_path)), tmp_path).read_text(encoding="utf-8"))


def test_wide_videos_are_made_smaller(tmp_path):
    videos = {"full": [measured(1, is_reference=True)], "window": [measured(1)]}
    path = compared(videos, tmp_path, size=(834, 482)).paths["full"][0]
    small = tmp_path / "small.mp4"
    small.write_bytes(preview(path))
    info = probe(small)
    assert (info.width, info.height, info.num_frames, info.fps) == (MAX_WIDTH, 184, 9, 16)
    assert small.stat().st_size < path.stat().st_size


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ConfigurationError, match=r"the report needs Jinja2.*pip install 'forcing-kv\[evaluation\]'"):
        check_page_available()
