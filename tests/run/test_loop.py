"""What the training loop says of its speed, on a device whose time is made up."""

from unittest import mock

import numpy as np
import pytest

from egattn.train import TrainConfig, loop


class Device:
    """Takes its time for every step; a launch waits for those before, as in a long queue."""

    def __init__(self, seconds: float):
        self.seconds, self.now = seconds, 0.0

    def step(self, state, rows):
        self.now += self.seconds
        return state, {"loss": np.float32(1)}

    def clock(self):
        self.now += 1e-6
        return self.now


# From as far ahead as it may run to a step at a time; at 0.09, 0.11 and 0.33 half a step decides.
@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.09, 0.093, 0.11, 0.33, 2])
def test_runs_ahead_and_logs_the_speed_of_the_device(monkeypatch, tmp_path, seconds):
    config = TrainConfig(
        tmp_path, data=tmp_path, steps=400, batch_size=8, log_every=5, evaluate_every=400
    )
    device, tools = Device(seconds), {name: mock.MagicMock() for name in loop._Loop.__annotations__}
    tools["stop"].requested.return_value = False
    tools["checkpoints"].copy.return_value = None
    tools |= {"config": config, "nonfinite": mock.MagicMock(skipped=0)}
    monkeypatch.setattr(loop.time, "perf_counter", device.clock)
    monkeypatch.setattr(loop._Loop, "_step_fn", device.step)
    for name in ("settle", "device_batch"):
        monkeypatch.setattr(loop, name, mock.MagicMock())
    monkeypatch.setattr(loop, "is_finite", lambda metrics: True)
    training = loop._Loop(**tools)
    training.run(mock.MagicMock(params={}), iter(range(400)), 0)
    # The last steps are read at once, which looks fast.
    assert abs(training._ahead - min(max(0.5 / seconds, 1), 16)) <= 2
    rates = [call.args[1]["tokens_per_second"] for call in tools["records"].train.mock_calls]
    assert len(rates) == 80
    true = 8 * config.model.context_length / seconds
    assert np.median(rates) == pytest.approx(true, rel=1e-3)
    # All but those while it finds out how far to run ahead, and those that it reads at the end.
    assert np.mean(np.isclose(rates[20:], true, rtol=1e-3)) > 0.9
