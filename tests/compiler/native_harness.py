"""Compile a function on Values to a loop over arrays, for the tests of the instructions it emits."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir

from gradfit.compiler.elementary import register_symbols
from gradfit.compiler.values import DOUBLE, SINGLE, Value, float32, float64, splat

WIDTHS = (1, 2, 4, 8, 16)


@functools.cache
def _initialise() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    register_symbols()


def _machine(*, oldest: bool) -> Any:
    """Describe this machine, or the oldest of its kind; each engine takes one for its own."""
    _initialise()
    cpu, features = ("", "") if oldest else (binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    return binding.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


@functools.cache
def compiled(
    function: Callable[..., Value], *, inputs: int, width: int, double: bool, oldest: bool = False
) -> Callable[..., Any]:
    """Make ``out[i] = function(in0[i], in1[i], ...)`` on arrays of one precision; a boolean result is 1 or 0.

    A function that gives a plain number for vectors gives it to every lane. ``oldest`` does without newer instructions.
    """
    element, size = (DOUBLE, 8) if double else (SINGLE, 4)
    kind = element if width == 1 else ir.VectorType(element, width)
    index = ir.IntType(64)
    module = ir.Module("test")
    module.triple = binding.get_process_triple()
    loop = ir.Function(module, ir.FunctionType(ir.VoidType(), [index] + [element.as_pointer()] * (inputs + 1)), "loop")
    for argument in loop.args[1:]:
        argument.add_attribute("noalias")
    entry, body, end = (loop.append_basic_block(name) for name in ("entry", "body", "end"))
    builder = ir.IRBuilder(entry)
    builder.branch(body)
    builder.position_at_end(body)
    i = builder.phi(index)
    pointers = [builder.bitcast(builder.gep(argument, [i]), kind.as_pointer()) for argument in loop.args[1:]]
    arguments = [Value(builder, builder.load(pointer, align=size)) for pointer in pointers[:-1]]
    result = function(*arguments)
    result = splat(float64(result) if double else float32(result), width)
    builder.store(result.ir, pointers[-1], align=size)
    following = builder.add(i, index(width))
    i.add_incoming(index(0), entry)
    i.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, loop.args[0]), body, end)
    builder.position_at_end(end)
    builder.ret_void()
    return _callable(str(module), inputs, np.float64 if double else np.float32, oldest=oldest)


def _callable(source: str, inputs: int, dtype: type, *, oldest: bool) -> Callable[..., Any]:
    machine = _machine(oldest=oldest)
    module = binding.parse_assembly(source)
    module.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    address = engine.get_function_address("loop")
    pointer = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * (inputs + 1))(address)

    def call(*arrays: Any) -> Any:
        n = len(arrays[0])
        padded = [np.concatenate([np.asarray(a, dtype), np.ones(-n % WIDTHS[-1], dtype)]) for a in arrays]
        result = np.empty_like(padded[0])
        pointer(len(result), *(a.ctypes.data for a in padded), result.ctypes.data)
        return result[:n]

    call.engine = engine  # type: ignore[attr-defined]  # the code lives as long as its engine
    return call
