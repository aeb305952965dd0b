"""Between latents and files: streaming VAE decode and encode, crash-safe MP4 writing, reading, contact sheets.

Nothing here knows about transformers, caches or prompts: the decoder takes latents and gives pixel frames, the writer
takes pixel frames and gives a file, both beside the making of the next latents if need be; the reader and the encoder
go the other way.
"""

from forcing_kv.video.contact_sheet import ContactSheetRow, contact_sheet
from forcing_kv.video.decode import StreamingVaeDecoder, compiled_decoder
from forcing_kv.video.decoder_options import DecoderOptions
from forcing_kv.video.encode import StreamingVaeEncoder
from forcing_kv.video.overlap import ChunkOutput, Decoded
from forcing_kv.video.reader import VideoInfo, iterate_frames, probe, read_frames, read_video
from forcing_kv.video.size import WAN_VAE, DecoderSize, VaeSize
from forcing_kv.video.tiny_decoder import TINY_DECODER, StreamingTinyDecoder, TinyDecoder, load_tiny_decoder
from forcing_kv.video.writer import DEFAULT_FPS, VideoWriter

__all__ = [
    "DEFAULT_FPS",
    "TINY_DECODER",
    "WAN_VAE",
    "ChunkOutput",
    "ContactSheetRow",
    "Decoded",
    "DecoderOptions",
    "DecoderSize",
    "StreamingTinyDecoder",
    "StreamingVaeDecoder",
    "StreamingVaeEncoder",
    "TinyDecoder",
    "VaeSize",
    "VideoInfo",
    "VideoWriter",
    "compiled_decoder",
    "contact_sheet",
    "iterate_frames",
    "load_tiny_decoder",
    "probe",
    "read_frames",
    "read_video",
]
