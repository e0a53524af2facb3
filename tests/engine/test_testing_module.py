"""Two native modules in one process: types, exceptions and engines of longcat._testing are those of longcat._core."""

import subprocess
import sys
from pathlib import Path

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing

from support.checkpoints import random_token_ids
from support.devices import EMULATED, DeviceEngine


def options(**fields) -> _core.EngineOptions:
    core = _core.EngineOptions()
    core.num_threads, core.kv_cache_memory = 1, 1 << 22
    for name, value in fields.items():
        setattr(core, name, value)
    return core


def test_the_product_has_no_part_of_it():
    assert not hasattr(_core, "testing")
    content = Path(_core.__file__).read_bytes()
    assert b"cuda-emulated" not in content and b"stand-in for NCCL" not in content
    assert b"cuda-emulated" in Path(testing.__file__).read_bytes()


def test_the_product_knows_no_emulated_device(tiny):
    with pytest.raises(ValueError, match='found device="cuda-emulated"; expected "auto", "cpu", "cuda" or "cuda:N"'):
        longcat.Engine(tiny, device=EMULATED)


def test_either_module_may_be_imported_first(tiny):
    program = """
import longcat._testing as testing
import longcat
try:
    testing.open_checkpoint("nowhere")
except longcat.Error as error:
    print(type(error) is longcat.Error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"


def test_exceptions_are_of_one_class(tiny):
    """Thrown by the runtime of either module, by their most derived type."""
    scheduler = testing.Scheduler(max_num_queued=1, num_blocks=4)
    scheduler.add([1], 1)
    with pytest.raises(_core.QueueFullError):
        scheduler.add([1], 1)
    for open_engine in (_core.Engine, testing.open_engine):
        with pytest.raises(longcat.OutOfMemoryError) as caught:
            open_engine(tiny, options(kv_cache_memory=1))
        assert type(caught.value) is longcat.OutOfMemoryError
        with pytest.raises(longcat.Error, match="does not exist") as error:
            open_engine("nowhere", options())
        assert type(error.value) is longcat.Error


def test_an_engine_that_the_testing_module_opened(tiny):
    """Its C++ object is made by one module and used, and destroyed, by the other."""
    engine = testing.open_engine(tiny, options(device=EMULATED))
    with pytest.raises(ValueError, match="is not in the vocabulary"):
        engine.forward([1 << 30])
    engine.close()
    with pytest.raises(longcat.Error, match="this engine is closed"):
        engine.step()


def test_engines_of_both_are_alike(tiny):
    """The same Python type, the same instruction set and the same bits: no state of a module matters."""
    prompt, found = random_token_ids(3, 80), []
    for open_engine in (_core.Engine, testing.open_engine):
        engine = open_engine(tiny, options())
        assert type(engine) is _core.Engine
        params, queue, arrived = _core.SamplingParams(), _core.OutputQueue(), []
        params.max_tokens, params.temperature, params.seed = 20, 0.8, 5
        engine.start()
        engine.add_request(prompt, params, 1, queue)
        while queue.wait(arrived) and arrived[-1].finish_reason is None:
            pass
        found.append((engine.forward(prompt), [output.token_id for output in arrived]))
        engine.close()
    assert np.array_equal(found[0][0], found[1][0])
    assert len(found[0][1]) == 20 and found[0][1] == found[1][1]


def test_engines_of_both_at_once(tiny):
    """Each with a thread of its own, over one Python interpreter."""
    prompt = random_token_ids(4, 30)
    with longcat.Engine(tiny, num_threads=1) as engine, DeviceEngine(tiny, device=EMULATED) as emulated:
        streams = [e.generate(prompt_token_ids=prompt, max_tokens=8, stream=True) for e in (engine, emulated)]
        for chunks in zip(*streams, strict=False):
            assert len(chunks) == 2
        assert engine.info()["device"] == "cpu" and emulated.info()["device"] == EMULATED
