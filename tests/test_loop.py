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


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.093, 0.4, 2])
def test_logged_speeds_are_those_of_the_device(monkeypatch, tmp_path, seconds):
    config = TrainConfig(
        tmp_path, data=tmp_path, steps=400, batch_size=8, log_every=5, evaluate_every=400
    )
    device, tools = Device(seconds), {name: mock.MagicMock() for name in loop._Loop.__annotations__}
    tools["stop"].requested.return_value = False
    tools |= {"config": config, "nonfinite": mock.MagicMock(skipped=0)}
    monkeypatch.setattr(loop.time, "perf_counter", device.clock)
    monkeypatch.setattr(loop._Loop, "_step_fn", device.step)
    for name in ("settle", "device_batch"):
        monkeypatch.setattr(loop, name, mock.MagicMock())
    monkeypatch.setattr(loop, "is_finite", lambda metrics: True)
    tools["checkpoints"].copy.return_value = None
    loop._Loop(**tools).run(mock.MagicMock(params={}), iter(range(400)), 0)
    rates = [call.args[1]["tokens_per_second"] for call in tools["records"].train.mock_calls]
    assert len(rates) == 80
    true = 8 * config.model.context_length / seconds
    # But while it finds out how far to run ahead, and when it reads the rest at the end.
    assert np.median(rates) == pytest.approx(true, rel=1e-3)
    assert np.mean(np.isclose(rates[20:], true, rtol=1e-3)) > 0.8
