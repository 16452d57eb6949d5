"""The commands end to end, at a size at which nothing is learned."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from experiments.active_matter.__main__ import main
from experiments.active_matter.trained import load
from tests.active_matter.running import refused, start
from tests.training import records

TRAIN = (
    "--particles 3 --steps 6 --batch-size 8 --trajectories 16 --refresh 0.05 --width 8 --layers 1 "
    "--heads 2 --linear-samples 16 --evaluate-samples 8 --log-every 1 --evaluate-every 3 "
    "--checkpoint-every 2 --stationary-weights"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "crystal"
    main(f"train crystal {run} {TRAIN}".split())
    return run


def evaluated(capsys, command: str) -> dict:
    capsys.readouterr()
    main(command.split())
    return json.loads(capsys.readouterr().out)


def numbers(run) -> list[tuple]:
    return [(r["step"], r["loss"], r["gradient_norm"]) for r in records(run, "train")]


def test_evaluation_has_its_keys(finished, capsys):
    values = evaluated(capsys, f"evaluate {finished} --json --samples 32 --exact 16")
    names = "epr epr_x epr_g epr_standard_error epr_lower_bound epr_identity div_v residual_mean"
    for name in (*names.split(), "residual_std", "stein"):
        assert isinstance(values[name], float), name
    assert values["per_dof"] is True
    assert values["epr"] == pytest.approx(values["epr_x"] + values["epr_g"])
    assert np.shape(values["attention_entropy"]) == (2, 2)
    assert np.all(np.array(values["attention_entropy"]) <= np.log(3) + 1e-6)
    assert values["exact_epr"] > 0
    assert values["snapshots"] == 32
    main(["evaluate", str(finished), "--samples", "32", "--exact", "16"])
    assert "entropy production" in capsys.readouterr().out


@pytest.mark.slow
def test_few_particles_of_a_cluster(tmp_path):
    """The linear start knows most of it; no estimate exceeds the identity but by chance."""
    run, small = tmp_path / "cluster", TRAIN.replace("--particles 3", "--particles 4")
    for few, many in (("linear-samples 16", "linear-samples 512"), ("samples 8", "samples 1024")):
        small = small.replace(few, many)
    small = small.replace("--stationary-weights", "--optimizer.learning-rate 1e-6")
    small = small.replace("--evaluate-every 3", "--evaluate-every 6")
    main(["train", "cluster", str(run), *small.split()])
    values = records(run, "validation")[-1]
    known, error = values["epr_identity"], values["epr_identity_standard_error"]
    assert 0.8 * known < values["epr"] < known + 3 * error
    assert values["epr_lower_bound"] < known + 3 * error
    assert values["epr_x"] > 0 < values["epr_g"]


def test_score_and_velocity_of_a_loaded_run_belong_together(finished):
    trained = load(finished)
    assert (trained.step, trained.config.system, trained.system.particles) == (6, "crystal", 3)
    z = trained.system.start(jax.random.key(0))
    process = trained.process
    there = process.drift(z) - process.diffusion * trained.score(z)
    np.testing.assert_allclose(trained.velocity(z), there, atol=1e-5)


def test_killed_and_resumed_gives_the_same_numbers_to_the_bit(finished, tmp_path):
    run = tmp_path / "killed"
    saved = run / "checkpoints" / "2" / "checksums.json"
    deadline = time.monotonic() + 300
    with start(f"train crystal {run} {TRAIN}") as process:
        while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert saved.exists()
    main(f"train crystal {run} {TRAIN}".split())
    assert numbers(run) == numbers(finished)
    assert records(run, "validation") == records(finished, "validation")


def test_every_trajectory_moves(finished):
    from egattn.run import restore
    from experiments.active_matter.training import make_task

    task = make_task(load(finished).config)
    states = [restore(finished / "checkpoints" / str(step), task.target) for step in (2, 4, 6)]
    before, after, later = (np.asarray(state.trajectories) for state in states)
    assert before.shape == (2, 8, 2, 3, 2)
    # Two turns are all of them.
    assert (np.abs(after - before).max((2, 3, 4)) > 0).all()
    assert (np.abs(later - after).max((2, 3, 4)) > 0).all()


def test_trains_and_evaluates_on_a_file(tmp_path, capsys):
    path, run = tmp_path / "trap.gsd", tmp_path / "run"
    main(f"simulate trap {path} --trajectories 16 --times 2 --spacing 0.1".split())
    options = TRAIN.replace("--particles 3 ", "").replace("--heads 2", "--heads 1")
    main(f"train trap {run} {options} --objective velocity --data {path}".split())
    values = evaluated(capsys, f"evaluate {run} --json --data {path}")
    assert values["snapshots"] == 32
    main(f"simulate trap {tmp_path}/fast.gsd --speed 0.3 --trajectories 4 --times 1".split())
    message = refused(capsys, f"evaluate {run} --data {tmp_path}/fast.gsd")
    assert "frame 0 has speed 0.3, expected 0.2" in message


BAD = [
    ("trian", "command must be one of demo, train, evaluate, report, simulate, got 'trian'"),
    ("train", "expected train SYSTEM RUN"),
    ("train cluser {new}", "system must be one of trap, crystal, ring, cluster, got 'cluser'"),
    ("train crystal {new} --particles 1", "crystal needs 2 to 400 particles, got 1"),
    ("train cluster {new} --noise -0.1", "noise must be > 0 and finite, got -0.1"),
    ("train cluster {new} --packing 0.99 --particles 4", "the box must be at least twice"),
    ("train cluster {new} --speed nan", "speed must be >= 0 and finite, got nan"),
    ("train ring {new} --objectiv velocity", "did you mean '--objective'"),
    ("train ring {new} --objective nothing", "--objective"),
    ("train ring {new} --steps 0", "steps must lie within 1 to 2147483647, got 0"),
    ("train ring {new} --batch-size 1000", "multiple of batch_size = 1000"),
    ("train ring {new} --sigma 0", "sigma must be > 0"),
    ("train ring {new} --penalty.residual -1", "penalty.residual must be >= 0"),
    ("train cluster {new} --stationary-weights", "stationary_weights needs a system with controls"),
    ("train cluster {new} --penalty.residual 1", "penalty.residual needs exact divergences"),
    ("train crystal {new} --heads 3", "heads must divide width"),
    ("train crystal {new} --data {file}", "is not a gsd file that can be read"),
    ("train crystal {new} --data {new}.gsd", "new.gsd is not a file"),
    ("train ring {finished}", "holds another run"),
    ("simulate crystal {new}.gsd --particles 1", "crystal needs 2 to 400 particles, got 1"),
    ("simulate ring {new}", "expected a file named *.gsd, got new"),
    ("simulate ring {new}.gsd --times 0", "times must be at least 1, got 0"),
    ("evaluate {new}", "is not a run directory"),
    ("evaluate {finished} --step 3", "no checkpoint 3 in"),
    ("evaluate {finished} --samples 1", "samples must be at least 2, got 1"),
    ("demo now", "demo takes no arguments, got now"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_line_and_status_two(
    command, message, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not snapshots")
    paths = {"new": "new", "file": "file", "finished": finished}
    assert message in refused(capsys, command.format(**paths))
    # Nothing was written.
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_checkpoint_of_another_system(finished, tmp_path, capsys):
    config = json.loads((finished / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoints").symlink_to(finished / "checkpoints")
    (other / "config.json").write_text(json.dumps({**config, "particles": 4}))
    message = refused(capsys, f"evaluate {other}")
    assert "a checkpoint of another system or network than its config says" in message
