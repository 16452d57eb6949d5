"""What the tests of `egattn compile` share: small configs, one compiled program, errors."""

import functools
import importlib
import importlib.util

import pytest

from egattn import cli
from egattn.compile import CompileConfig, topology
from egattn.sharding import make_mesh

# A function of this name hides the module.
planning = importlib.import_module("egattn.compile.plan")

MODEL = "--model.num-layers 3 --model.num-heads 4 --model.embed-dim 256 --model.vocab-size 512"
TINY = f"--topology v5e:4x4 {MODEL} --model.context-length 256 --effort O0"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is for Linux on x86-64 (pip install 'egattn[tpu]')",
)


def compile_config(options: str) -> CompileConfig:
    return cli._compile_config(options.split())


SLICE = f"{TINY} --mesh replica=2,fsdp=4,tensor=2 --batch-size 32"


@functools.cache
def compiled():
    """The one program that the tests of plans share."""
    config = compile_config(SLICE)
    chips = topology.describe(config.topology)
    mesh = make_mesh(config.mesh, chips)
    return planning.compile_train_step(config.train_config(len(chips)), mesh, config.effort)


def fails(options: str, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["compile", *options.split()])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err
