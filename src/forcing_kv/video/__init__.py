"""Between latents and files: streaming VAE decode and encode, crash-safe MP4 writing, reading, contact sheets.

Nothing here knows about models, caches or prompts: the decoder takes latents and gives pixel frames, the writer takes
pixel frames and gives a file; the reader and the encoder go the other way.
"""

from forcing_kv.video.contact_sheet import ContactSheetRow, contact_sheet
from forcing_kv.video.decode import StreamingVaeDecoder
from forcing_kv.video.encode import StreamingVaeEncoder
from forcing_kv.video.reader import VideoInfo, iterate_frames, probe, read_frames, read_video
from forcing_kv.video.size import WAN_VAE, VaeSize
from forcing_kv.video.writer import DEFAULT_FPS, VideoWriter

__all__ = [
    "DEFAULT_FPS",
    "WAN_VAE",
    "ContactSheetRow",
    "StreamingVaeDecoder",
    "StreamingVaeEncoder",
    "VaeSize",
    "VideoInfo",
    "VideoWriter",
    "contact_sheet",
    "iterate_frames",
    "probe",
    "read_frames",
    "read_video",
]
