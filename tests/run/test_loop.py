"""What the loop says of its speed, on a device whose time is made up."""

import dataclasses
import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from egattn.run import Preempted, RunConfig, RunDirectory, Task, execute


class Device:
    """Takes its time for every step; a launch waits for those before, as in a long queue."""

    def __init__(self, seconds: float):
        self.seconds, self.now = seconds, 0.0

    def step(self, state, batch):
        self.now += self.seconds
        return {"n": state["n"] + 1}, {"loss": np.float32(1)}

    def clock(self):
        self.now += 1e-6
        return self.now


def counting(config: RunConfig, step, **more) -> Task:
    """A task whose state counts its steps."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return Task(
        config=config,
        target={"n": jax.ShapeDtypeStruct((), np.int32, sharding=here)},
        init=lambda: {"n": jax.device_put(np.int32(0), here)},
        step=step,
        batches=lambda done: iter(range(done, 10**9)),
        **more,
    )


def rates(run) -> list[float]:
    lines = map(json.loads, RunDirectory(run).metrics.read_text().splitlines())
    return [line["examples_per_second"] for line in lines if line["kind"] == "train"]


# From as far ahead as it may run to a step at a time; at 0.09, 0.11 and 0.33 half a step decides.
@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.09, 0.093, 0.11, 0.33, 2])
def test_runs_ahead_and_logs_the_speed_of_the_device(tmp_path, seconds):
    config = RunConfig(tmp_path / "run", steps=400, log_every=5, checkpoint_every=400)
    device, unread, most = Device(seconds), [], []

    def step(state, batch):
        unread.append(batch)
        most.append(len(unread))
        return device.step(state, batch)

    def is_finite(metrics) -> bool:
        unread.pop()
        return True

    task = counting(config, step, is_finite=is_finite, units_per_step=8, unit="examples")
    assert execute(config, lambda: task, device.clock) == {}
    # The steps under way when the next one is launched, itself among them.
    assert abs(most[200] - 1 - min(max(0.5 / seconds, 1), 16)) <= 2
    logged = rates(config.run)
    assert len(logged) == 80
    true = 8 / seconds
    assert np.median(logged) == pytest.approx(true, rel=1e-3)
    # All but those while it finds out how far to run ahead, and those that it reads at the end.
    assert np.mean(np.isclose(logged[20:], true, rtol=1e-3)) > 0.9


def test_a_signal_while_it_waits_for_data_saves(tmp_path):
    config = RunConfig(tmp_path / "run", steps=9, log_every=1)

    def stuck(done):
        yield from range(3 - done)
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGHUP]).start()
        time.sleep(60)

    task = counting(config, Device(0.1).step)._replace(batches=stuck)
    with pytest.raises(Preempted, match="stopped by SIGHUP after step 3, saved"):
        execute(config, lambda: task)
    assert RunDirectory(config.run).saved() == 3
    task = counting(config, Device(0.1).step)
    execute(config, lambda: task)
    lines = map(json.loads, RunDirectory(config.run).metrics.read_text().splitlines())
    assert [x["step"] for x in lines if x["kind"] == "train"] == [*range(1, 10)]


def test_a_failure_before_the_first_step_claims_nothing(tmp_path):
    config = RunConfig(tmp_path / "run", steps=9)

    def fails(state, batch):
        raise ValueError("too large")

    with pytest.raises(ValueError, match="too large"):
        execute(config, lambda: counting(config, fails))
    assert not config.run.exists()
    other = dataclasses.replace(config, steps=3)
    execute(other, lambda: counting(other, Device(0.1).step))
    with pytest.raises(ValueError, match="holds another run: steps: 3 != 9"):
        execute(config, lambda: counting(config, fails))
