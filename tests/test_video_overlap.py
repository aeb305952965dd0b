"""Decoding and writing beside the diffusion: the same bytes, in order, in constant memory, and no thread left."""

import gc
import threading
import weakref

import pytest
import torch

from forcing_kv.errors import OutputError
from forcing_kv.video import ChunkOutput, StreamingTinyDecoder, StreamingVaeDecoder, TinyDecoder, compiled_decoder
from peak_memory import dry_run
from vaes import CHANNELS, random_vae

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture(scope="module")
def vae():
    return random_vae()


def make_latents(num_frames, batch=2, seed=1):
    return torch.randn(batch, num_frames, CHANNELS, 3, 5, generator=torch.Generator().manual_seed(seed))


class Film:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.parts, self.items, self.states = [], [], []

    def __call__(self, decoded):
        self.parts.append(decoded.frames)
        self.items.append(decoded.item)
        self.states.append(decoded.state)

    @property
    def frames(self):
        return torch.cat(self.parts, dim=1)


def output_of(vae, write, *, overlapped, device=CPU):
    return ChunkOutput(StreamingVaeDecoder(vae), write, device=device, overlapped=overlapped)


@BOTH
@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 3, 1]], ids=str)
def test_what_is_written_is_the_whole_decode(vae, overlapped, chunks):
    latents, film = make_latents(7), Film()
    with output_of(vae, film, overlapped=overlapped) as output:
        for number, part in enumerate(latents.split(chunks, dim=1)):
            output.put(part, number)
    assert torch.equal(film.frames, StreamingVaeDecoder(vae).decode(latents))
    assert film.items == list(range(len(chunks)))
    delivered = list(output.delivered())
    assert [one.item for one in delivered] == film.items
    assert [one.num_frames for one in delivered] == [4 * size - 3 * (not place) for place, size in enumerate(chunks)]
    for one in delivered:
        assert one.frames is None
        assert min(one.decode_ms, one.write_ms, output.waited_ms) > 0
        assert one.decoded_at < one.written_at
    assert list(output.delivered()) == []


@BOTH
def test_two_interleaved_streams_are_two_separate_ones(vae, overlapped):
    videos, films = [make_latents(6, seed=1), make_latents(6, batch=1, seed=2)], [Film(), Film()]
    first, second = (output_of(vae, film, overlapped=overlapped) for film in films)
    with first, second:
        for at in (0, 2, 4):
            first.put(videos[0][:, at : at + 2], at)
            second.put(videos[1][:, at : at + 2], at)
    for video, film in zip(videos, films, strict=True):
        assert torch.equal(film.frames, StreamingVaeDecoder(vae).decode(video))


@BOTH
def test_the_state_is_that_after_its_chunk(vae, overlapped):
    latents, film = make_latents(6), Film()
    with output_of(vae, film, overlapped=overlapped) as output:
        for number in range(3):
            output.put(latents[:, 2 * number : 2 * number + 2], number, wants_state=number == 1)
    before, state, after = film.states
    assert before is after is None
    restored = StreamingVaeDecoder(vae)
    restored.load_state(*state)
    assert torch.equal(restored.decode(latents[:, 4:]), film.parts[2])


@BOTH
def test_the_first_chunk_is_decoded_before_the_second_is_begun(vae, overlapped):
    decoded = []

    class Decoder(StreamingVaeDecoder):
        def decode(self, latents):
            frames = super().decode(latents)
            decoded.append(1)
            return frames

    with ChunkOutput(Decoder(vae), Film(), device=CPU, overlapped=overlapped) as output:
        output.put(make_latents(2), 0)
        assert decoded == [1]


def test_the_caller_goes_on_while_a_chunk_is_decoded(vae):
    going_on = threading.Event()

    class Decoder(StreamingVaeDecoder):
        def decode(self, latents):
            if self.num_latent_frames:
                assert going_on.wait(60)
            return super().decode(latents)

    with ChunkOutput(Decoder(vae), Film(), device=CPU, overlapped=True) as output:
        output.put(make_latents(1), 0)
        output.put(make_latents(1), 1)  # would never return if it waited for the decoder
        going_on.set()
        output.wait()
        assert len(list(output.delivered())) == 2


def test_no_more_than_two_chunks_of_pictures_are_alive(vae):
    alive, most = weakref.WeakSet(), []

    class Decoder(StreamingVaeDecoder):
        def decode(self, latents):
            frames = super().decode(latents)
            gc.collect()
            alive.add(frames)
            most.append(len(alive))
            return frames

    with ChunkOutput(Decoder(vae), lambda decoded: None, device=CPU, overlapped=True) as output:
        for part in make_latents(12).split(1, dim=1):
            output.put(part, None)
    assert max(most) <= 2
    gc.collect()
    assert not alive


@pytest.mark.parametrize("kind", ["VAE", "tiny"])
def test_a_decoder_has_no_more_alive_in_a_longer_video(kind):
    peaks = []
    with torch.device("meta"):
        network = random_vae("residual") if kind == "VAE" else TinyDecoder()
    channels = CHANNELS if kind == "VAE" else 16
    for num_chunks in (3, 12):
        with dry_run() as memory:
            decoder = StreamingVaeDecoder(network) if kind == "VAE" else StreamingTinyDecoder(network)
            for _ in range(num_chunks):
                decoder.decode(torch.empty(1, 3, channels, 4, 6, device="meta"))
        peaks.append((memory.peak_bytes, decoder.nbytes))
    assert peaks[0] == peaks[1]
    assert 0 < peaks[0][1] < peaks[0][0]


@BOTH
def test_an_error_of_the_decoder_comes_to_the_caller(vae, overlapped):
    film, latents = Film(), make_latents(4)
    with pytest.raises(RuntimeError, match="broken weights"):
        _put_all(_Failing(vae), film, latents, overlapped)
    assert torch.equal(film.frames, StreamingVaeDecoder(vae).decode(latents[:, :2]))  # what came before is written


class _Failing(StreamingVaeDecoder):
    def decode(self, latents):
        if self.num_latent_frames == 2:
            raise RuntimeError("broken weights")
        return super().decode(latents)


@BOTH
def test_an_error_of_the_writer_comes_to_the_caller(vae, overlapped):
    film = Film()

    def write(decoded):
        if decoded.item == 1:
            raise OutputError("the disk is full")
        film(decoded)

    with pytest.raises(OutputError, match="the disk is full"):
        _put_all(StreamingVaeDecoder(vae), write, make_latents(9), overlapped)
    assert film.items == [0]


@BOTH
def test_an_interrupt_of_the_caller_leaves_all_that_was_put(vae, overlapped):
    film, latents = Film(), make_latents(3)
    with pytest.raises(KeyboardInterrupt):
        _put_all(StreamingVaeDecoder(vae), film, latents, overlapped, error=KeyboardInterrupt)
    assert torch.equal(film.frames, StreamingVaeDecoder(vae).decode(latents))


def _put_all(decoder, write, latents, overlapped, error=None):
    with ChunkOutput(decoder, write, device=CPU, overlapped=overlapped) as output:
        for number, part in enumerate(latents.split(1, dim=1)):
            output.put(part, number)
        if error is not None:
            raise error


def test_a_compiled_decoder_has_no_breaks_and_starts_with_the_third_frame(vae, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **kw: original(module, backend=backend, fullgraph=True, **kw))
    decoder = StreamingVaeDecoder(vae, compiled=compiled_decoder(vae))
    latents = make_latents(6)
    head = decoder.decode(latents[:, :2])
    assert not graphs
    frames = torch.cat([head, decoder.decode(latents[:, 2:4]), decoder.decode(latents[:, 4:])], dim=1)
    assert len(graphs) == 1
    assert torch.equal(frames, StreamingVaeDecoder(vae).decode(latents))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_nothing_but_the_own_stream_is_waited_for(vae):
    device = torch.device("cuda")
    network = random_vae().to(device)
    latents = make_latents(12).to(device)
    expected = StreamingVaeDecoder(network).decode(latents)
    for overlapped in (False, True):
        film = Film()
        with output_of(network, film, overlapped=overlapped, device=device) as output:
            for number, part in enumerate(latents.split(3, dim=1)):
                # The caller's stream is busy, and what it makes there is overwritten as soon as it may be.
                torch.cuda._sleep(10_000_000)
                put = part.clone()
                output.put(put, number)
                del put
                torch.randn(part.shape, device=device)
        assert torch.equal(film.frames, expected)
