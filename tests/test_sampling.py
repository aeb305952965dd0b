"""Schedule, sampler and noise against known numbers."""

import pytest
import torch

from forcing_kv import ConfigurationError
from forcing_kv.sampling import FewStepSampler, FlowSchedule, SeededNoise


def test_warped_steps_are_the_published_ones():
    sampler = FewStepSampler()
    assert sampler.timesteps == pytest.approx([1000, 937.5, 833.3333, 625])
    assert sampler.sigmas == pytest.approx([1, 0.9375, 0.8333333, 0.625])


def test_unwarped_steps_go_to_the_model_as_listed_with_the_nearest_noise_level():
    sampler = FewStepSampler(steps=(1000, 937, 833, 625), warped=False)
    assert sampler.timesteps == (1000, 937, 833, 625)
    assert sampler.sigmas == pytest.approx([1, 0.937, 0.833, 0.625], abs=5e-4)
    assert all(sigma in sampler.schedule.sigmas for sigma in sampler.sigmas)


def test_schedule_without_shift_is_linear():
    schedule = FlowSchedule(shift=1)
    assert schedule.sigmas[0] == 1
    assert schedule.sigmas[250] == pytest.approx(0.75)
    assert len(schedule.sigmas) == 1000
    assert schedule.sigma(0) == pytest.approx(0.001)


def test_a_perfect_model_gives_the_clean_chunk_at_every_step():
    clean = torch.randn(2, 3, 4, 2, 2)
    seen = []
    noises = [torch.randn_like(clean) for _ in range(4)]
    sampler = FewStepSampler()

    def predict_velocity(x, timestep):
        seen.append((x, timestep))
        return (x - clean) / sampler.schedule.sigma(timestep)

    draws = iter(noises[1:])
    torch.testing.assert_close(sampler.sample(noises[0], predict_velocity, lambda: next(draws)), clean)
    for (x, timestep), sigma, noise in zip(seen, sampler.sigmas, noises, strict=True):
        torch.testing.assert_close(x, (1 - sigma) * clean + sigma * noise, atol=1e-5, rtol=1e-5)
        assert timestep == pytest.approx(1000 * sigma)
    assert next(draws, None) is None


def test_noise_depends_on_the_seed_of_the_item_only():
    batch = SeededNoise(5, (3, 2, 4))
    alone = [SeededNoise(5 + item, (1, 2, 4)) for item in range(3)]
    for _ in range(3):
        assert torch.equal(batch.draw(), torch.cat([noise.draw() for noise in alone]))
    state = batch.state()
    expected = batch.draw()
    batch.draw()
    batch.load_state(state)
    assert torch.equal(batch.draw(), expected)


@pytest.mark.parametrize("steps", [(), (1000, 1000), (250, 500), (1001, 500), (500, 0)])
def test_steps_must_fall(steps):
    with pytest.raises(ConfigurationError, match="must fall from at most 1000 to above 0"):
        FewStepSampler(steps=steps)
