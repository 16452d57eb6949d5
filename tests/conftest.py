"""Eight CPU devices, deterministic property tests and one random generator for every test."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

# Kernel tests on an accelerator choose another platform through the same variable.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The TPU compiler asks the cloud which chips are here, and admits one process: not where none are.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
jax.config.update("jax_num_cpu_devices", 8)
# Ignored in a shell's job in the background and after nohup; some tests send them to themselves.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
if os.environ["JAX_PLATFORMS"] == "cpu":
    # What a test compiles runs a few times only. 0 in the environment compiles it as users do.
    unoptimised = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", unoptimised == "1")
    if unoptimised == "1" and jax.__version_info__ < (0, 11):
        # Halves the time of compiling; later versions have but one way to emit fused loops.
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false "
            "--xla_cpu_parallel_codegen_split_count=1"
        )

pytest.register_assert_rewrite("tests.attention.battery")


def pytest_configure(config):
    """What one test has compiled no other one compiles again, in this process or another."""
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    directory = tempfile.mkdtemp(prefix="egattn-tests-")
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
    # For other processes, and for this one, which has read its environment already.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = directory
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


hypothesis.settings.register_profile(
    "egattn",
    # A first call compiles, so a deadline would measure the compiler.
    deadline=None,
    derandomize=True,
    print_blob=True,
    # Test batteries run the same property once for every implementation that subclasses them.
    suppress_health_check=[hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.load_profile("egattn")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """Also after a fixture that failed."""
    from tests.processes import kill_remaining

    kill_remaining()


@pytest.fixture
def optimised():
    """What is compiled is optimised as for users, where another library is the judge."""
    before = jax.config.values["jax_disable_most_optimizations"]
    # Compiled programs are found again whatever the setting.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    # Not above: a package imported before the plugins start escapes their type checks.
    from tests import training

    out = tmp_path_factory.mktemp("data") / "python"
    prepare = "prepare {0} --max-bytes 300000 --vocab-size 512 --context-length 32"
    training.egattn(prepare + " --validation-fraction 0.2", out)
    return out


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory) -> Path:
    """A run of eight steps that nothing interrupted."""
    from tests import training

    run = tmp_path_factory.mktemp("runs") / "ereg"
    training.egattn(f"train {{0}} --data {{1}} {training.EREG}", run, data)
    return run
