"""From latents to files: streaming VAE decode, crash-safe MP4 writing, contact sheets.

Nothing here knows about models, caches or prompts: the decoder takes latents and gives pixel frames, the writer takes
pixel frames and gives a file.
"""

from forcing_kv.video.contact_sheet import ContactSheetRow, contact_sheet
from forcing_kv.video.decode import StreamingVaeDecoder
from forcing_kv.video.reader import VideoInfo, probe, read_frames, read_video
from forcing_kv.video.size import WAN_VAE, VaeSize
from forcing_kv.video.writer import DEFAULT_FPS, VideoWriter

__all__ = [
    "DEFAULT_FPS",
    "WAN_VAE",
    "ContactSheetRow",
    "StreamingVaeDecoder",
    "VaeSize",
    "VideoInfo",
    "VideoWriter",
    "contact_sheet",
    "probe",
    "read_frames",
    "read_video",
]
