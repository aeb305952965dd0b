import pytest
import torch
from torch import nn

from forcing_kv.errors import CheckpointError, ConfigurationError
from forcing_kv.tiny.training.trainer import Schedule, Trainer, add_mean_gradients, condensed


class Blocks(nn.Module):
    """Has what the optimisers tell apart: a matrix in a module list, and others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Module()
        self.net.blocks = nn.ModuleList([nn.Linear(6, 6)])
        self.out = nn.Linear(6, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.net.blocks[0](x)))


def make(path, *, seed=0, **settings):
    schedule = Schedule(**{"num_steps": 40, "learning_rate": 1e-2, "warmup_steps": 2} | settings)
    return Trainer(Blocks(), schedule, seed=seed, checkpoint=path / "model.pt")


def gradients_of(trainer):
    def add_gradients(generator, step):
        x = torch.randn(16, 6, generator=generator)
        loss = (trainer.model(x)[:, 0] - x.sum(dim=1)).square().mean()
        loss.backward()
        return float(loss.detach())

    return add_gradients


def run(trainer):
    return list(trainer.run(gradients_of(trainer)))


@pytest.mark.parametrize("muon", [False, True])
def test_resumed_equals_uninterrupted(tmp_path, muon):
    whole = make(tmp_path / "whole", muon=muon)
    run(whole)

    first = make(tmp_path / "parts", muon=muon)
    steps = first.run(gradients_of(first))
    for _ in range(17):
        next(steps)
    first.save()
    second = make(tmp_path / "parts", muon=muon)
    assert second.resume()
    assert second.step == 17
    run(second)

    assert second.losses == whole.losses
    for name, value in whole.parameters.items():
        assert torch.equal(second.parameters[name], value)
        assert torch.equal(second.average[name], whole.average[name])


def test_every_step_and_every_seed_has_randomness_of_its_own(tmp_path):
    def drawn(seed):
        values = []

        def add_gradients(generator, step):
            values.append(float(torch.rand((), generator=generator)))
            for value in trainer.parameters.values():
                value.grad = torch.zeros_like(value)
            return 0.0

        trainer = make(tmp_path / str(seed), seed=seed, num_steps=6)
        list(trainer.run(add_gradients))
        return values

    assert len({*drawn(0), *drawn(1)}) == 12


@pytest.mark.parametrize("muon", [False, True])
def test_moving_to_a_device_changes_nothing(tmp_path, muon):
    """Here to the one it is on; what matters is that no optimiser forgets its state."""
    whole, moved = make(tmp_path / "whole", muon=muon), make(tmp_path / "moved", muon=muon)
    run(whole)
    steps = moved.run(gradients_of(moved))
    for _ in range(9):
        next(steps)
    moved.save()
    moved = make(tmp_path / "moved", muon=muon)
    moved.resume()
    moved.to("cpu")
    run(moved)
    for name, value in whole.parameters.items():
        assert torch.equal(moved.parameters[name], value)
        assert torch.equal(moved.average[name], whole.average[name])
    assert all(moved.parameters[name] is value for name, value in moved.model.named_parameters())


def test_muon_takes_the_inner_matrices_only(tmp_path):
    adam, muon = make(tmp_path, muon=True).optimisers
    model = make(tmp_path).model
    shapes = [[tuple(value.shape) for value in each.param_groups[0]["params"]] for each in (adam, muon)]
    assert shapes == [[(6,), (1, 6), (1,)], [(6, 6)]]
    assert [type(each).__name__ for each in (adam, muon)] == ["AdamW", "Muon"]
    assert len(make(tmp_path).optimisers) == 1
    assert len(list(model.parameters())) == 4


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_mean_gradients_are_those_of_the_mean_loss(num_parts):
    torch.manual_seed(0)
    model, inputs = Blocks(), torch.randn(num_parts, 7, 6)
    parameters = list(model.parameters())
    loss = add_mean_gradients(parameters, lambda part: model(inputs[part]).square().mean(), num_parts)
    expected = torch.stack([model(part).square().mean() for part in inputs]).mean()
    assert loss == pytest.approx(float(expected.detach()))
    for parameter, gradient in zip(parameters, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_average_warms_up_and_then_follows_slowly(tmp_path):
    trainer = make(tmp_path, num_steps=5, average_decay=0.3)
    name = "out.bias"
    average = trainer.average[name].clone()
    seen = []
    for step, _ in enumerate(trainer.run(gradients_of(trainer))):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * trainer.parameters[name].detach()
        torch.testing.assert_close(trainer.average[name], average)
        seen.append(decay)
    assert seen[0] == 0.1
    assert seen[-1] == 0.3


def test_it_learns_and_the_average_follows(tmp_path):
    trainer = make(tmp_path, num_steps=120, average_decay=0.9)
    run(trainer)
    assert sum(trainer.losses[-10:]) < 0.3 * sum(trainer.losses[:10])
    trainer.use_average()
    assert all(torch.equal(trainer.parameters[name], value) for name, value in trainer.average.items())


def test_no_time_means_no_step_but_a_checkpoint(tmp_path):
    trainer = make(tmp_path)
    assert list(trainer.run(gradients_of(trainer), max_seconds=0)) == []
    assert trainer.checkpoint.exists()
    assert not make(tmp_path / "elsewhere").resume()


def test_a_schedule_may_stop_before_its_end(tmp_path):
    trainer = make(tmp_path, stop_step=7)
    progress = run(trainer)
    assert trainer.step == 7
    assert progress[-1].num_steps == 7
    assert run(trainer) == []


def test_a_checkpoint_of_another_seed_or_model_is_refused(tmp_path):
    run(make(tmp_path, num_steps=1))
    with pytest.raises(CheckpointError, match="seed 0, not 5"):
        make(tmp_path, seed=5).resume()
    other = Trainer(nn.Linear(2, 2), Schedule(num_steps=1, learning_rate=1.0), seed=0, checkpoint=tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="other shapes"):
        other.resume()


def test_rate_warms_up_stays_and_falls():
    schedule = Schedule(num_steps=100, learning_rate=1.0, warmup_steps=10, decay_share=0.5)
    assert schedule.rate_at(0) == pytest.approx(0.1)
    assert schedule.rate_at(30) == 1.0
    assert schedule.rate_at(75) == pytest.approx(0.02 + 0.98 * 0.5)
    assert schedule.rate_at(99) < 0.03
    with pytest.raises(ConfigurationError, match="decay_share is 2"):
        Schedule(num_steps=1, learning_rate=1.0, decay_share=2)


def test_condensed_curve_is_means_of_equal_stretches():
    assert condensed([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert condensed([4.0], 40) == [4.0]
    assert condensed([], 40) == []
