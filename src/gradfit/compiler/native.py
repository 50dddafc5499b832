"""LLVM -> machine code: the one door to llvmlite's compiler, for the processor this runs on.

A module is text in LLVM's language. It is optimised, turned into an object file, kept on disk under a key that names everything
it was made from (:mod:`gradfit.compiler.cache`), and linked into the process. The key is asked for before the text is
written, so that what was compiled before costs neither writing nor compiling.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from gradfit.compiler import cache
from gradfit.compiler.elementary import register_symbols

COMPILING = threading.RLock()  # llvmlite's objects are not for two threads at once


@functools.cache
def edition() -> str:
    """Name of the compiler itself, from its own text: what another text of it made is not used again."""
    texts = [place.read_text("utf-8") for place in sorted(Path(__file__).parent.glob("*.py"))]
    return cache.key(*texts)


@dataclass(frozen=True)
class Target:
    """The processor: its name and features, and how many bytes its vectors have."""

    machine: Any = field(repr=False, compare=False)
    description: str
    vector_bytes: int

    def width(self, dtype: str) -> int:
        """How many numbers of a precision go into a vector."""
        return self.vector_bytes // (8 if dtype == "double" else 4)


@functools.cache
def target() -> Target:
    """Describe the processor this runs on."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    register_symbols()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    triple = llvm.get_process_triple()
    wide = 64 if features.get("avx512f") else 32 if features.get("avx") else 16
    description = f"{triple} {cpu} {features.flatten()} {llvm.llvm_version_info} {llvmlite.__version__} {edition()}"
    return Target(_machine(), description, wide)


def _machine() -> Any:
    """Make a code generator for this processor."""
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


@dataclass(frozen=True)
class Library:
    """Compiled functions in memory; keeps them alive.

    Attributes
    ----------
    addresses
        Where each function begins.
    """

    addresses: Mapping[str, int]
    engine: Any = field(repr=False, compare=False)

    def __deepcopy__(self, memo: Any) -> Library:
        """Stay one: code in memory is not copied."""
        return self


def compiled(key: str, text: Callable[[], str]) -> bytes:
    """Give the object file of a module.

    Parameters
    ----------
    key
        Names everything the module is made from, but for the processor.
    text
        Writes the module; called only where it was never compiled before.
    """
    with COMPILING:
        name = f"{cache.key(target().description, key)}.o"
        known = cache.read(name)
        if known is None:
            known = _object(text())
            cache.write(name, known)
        return known


def _object(text: str) -> bytes:
    machine = target().machine
    context = llvm.create_context()  # of its own: what the common one knows is never forgotten
    module = llvm.parse_assembly(text, context)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False  # kernels are written in vectors already
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    content = bytes(machine.emit_object(module))
    module.close()  # before its context
    return content


def load(objects: Sequence[bytes], names: Sequence[str]) -> Library:
    """Link object files together and find functions in them."""
    with COMPILING:
        # In LLVM's common context: an engine may be thrown away after everything it points to, and must find its own still there.
        empty = llvm.parse_assembly("")
        empty.triple = llvm.get_process_triple()
        engine = llvm.create_mcjit_compiler(empty, _machine())
        for content in objects:
            engine.add_object_file(llvm.ObjectFileRef.from_data(content))
        engine.finalize_object()
        return Library({name: engine.get_function_address(name) for name in names}, engine)


class Function:
    """A compiled function, called with addresses; keeps its code alive.

    Parameters
    ----------
    result
        ctypes type of what it gives.
    count
        How many addresses it takes.
    """

    def __init__(self, library: Library, name: str, result: Any, count: int) -> None:
        self.library = library
        self.name = name
        self.call: Callable[..., Any] = ctypes.CFUNCTYPE(result, *[ctypes.c_void_p] * count)(library.addresses[name])
        self.call.library = library  # type: ignore[attr-defined]  # while it runs: another thread may replace what held it

    def __deepcopy__(self, memo: Any) -> Function:
        """Stay one: code in memory is not copied."""
        return self
