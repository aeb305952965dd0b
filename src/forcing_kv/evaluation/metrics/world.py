"""The world score: what is right by the rules of the model's own world, the one metric with a ground truth."""

from forcing_kv.evaluation.metrics.base import Better, Measured, Metric


def world_score(video: Measured) -> float | None:
    """Share of the attributes that apply which are right, in per cent; None where nothing judges the video."""
    applying = [right for right in (video.rights or {}).values() if right is not None]
    return 100 * sum(applying) / len(applying) if applying else None


WORLD = Metric(
    name="world",
    title="World score",
    group="Right by the world's rules?",
    unit="%",
    better=Better.HIGHER,
    about="Share of what the prompt asks for that is to be seen, by rule and without a reference: right colour, shape, "
    "size, motion, speed, ground, one object that moves and stays. The mean over the attributes that apply to a video, "
    "then over videos.",
    needs_world=True,
    compute=lambda video, reference: world_score(video),
    digits=1,
)
