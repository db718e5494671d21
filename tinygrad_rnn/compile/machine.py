"""LLVM, where llvmlite is installed: from assembly to functions, with the object code kept on disk.

The cache (`TINYGRAD_RNN_CACHE`, else the user's cache folder) holds for each program its assembly (``.ll``, to read)
and its object code (``.o``, behind a checksum), under a name made of the assembly, the processor and the versions.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tinygrad_rnn.compile.kernels import (
    SHARED,
    Target,
    Typed,
    declarations,
    functions,
    losses,
    named,
    products,
    spreading,
    squares,
    sums,
    transposition,
)

OLDEST = (0, 45)  # the first llvmlite with opaque pointers and the new passes
FORMAT = "1"  # of the cache: changes when the meaning of a cached program does
LOCK = threading.RLock()  # LLVM compiles one program at a time
if hasattr(os, "register_at_fork"):  # no child inherits it from a thread that it does not have
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


class CompilerMissing(Exception):
    """There is no usable llvmlite; the text says why."""


@functools.cache
def llvm() -> Any:
    """llvmlite's binding, initialised. Raises CompilerMissing."""
    try:
        import llvmlite
        import llvmlite.binding as binding
    except ImportError as error:
        raise CompilerMissing("llvmlite is not installed; pip install 'tinygrad_rnn[fast]'") from error
    except OSError as error:
        raise CompilerMissing(f"llvmlite does not load: {error}") from error
    version = tuple(int(part) for part in re.findall(r"\d+", llvmlite.__version__)[:2])
    if version < OLDEST:
        raise CompilerMissing(f"llvmlite {llvmlite.__version__} is too old; expected {OLDEST[0]}.{OLDEST[1]} or newer")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@functools.cache
def machine() -> tuple[Any, Target, str]:
    """The target machine of this processor, its vectors, and a text that names both and the versions."""
    binding = llvm()
    import llvmlite

    cpu = binding.get_host_cpu_name()
    features = binding.get_host_cpu_features()
    made = binding.Target.from_default_triple().create_target_machine(cpu=cpu, features=features.flatten(), opt=3)
    if features.get("avx512f") and features.get("avx512vl"):
        target = Target(64, 32)
    elif features.get("avx2"):
        target = Target(32, 16)
    else:
        target = Target(16, 32 if "aarch64" in made.triple or "arm64" in made.triple else 16)
    told = f"{made.triple} {cpu} {features.flatten()} llvmlite {llvmlite.__version__} {sys.version_info[:2]} {FORMAT}"
    return made, target, told


def cache_folder() -> Path | None:
    """Where programs are kept; None where `TINYGRAD_RNN_CACHE` is empty."""
    set_ = os.environ.get("TINYGRAD_RNN_CACHE")
    if set_ is not None:
        return Path(set_) if set_ else None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "tinygrad_rnn"


def _object_code(text: str) -> bytes:
    """The object code of a program: from the cache, or compiled and put there."""
    made, _, told = machine()
    name = hashlib.sha256((told + text).encode()).hexdigest()[:32]
    folder = cache_folder()
    if folder is not None:
        with contextlib.suppress(OSError):
            data = (folder / f"{name}.o").read_bytes()
            if hashlib.sha256(data[32:]).digest() == data[:32]:
                return data[32:]
    binding = llvm()
    module = binding.parse_assembly(text)
    module.verify()
    builder = binding.create_pass_builder(made, binding.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    code = bytes(made.emit_object(module))
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(folder / f"{name}.ll", text.encode())
            _write(folder / f"{name}.o", hashlib.sha256(code).digest() + code)
    return code


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


ENGINES: list[Any] = []  # what was loaded stays loaded: code may run in any thread


@functools.cache
def load(text: str) -> Any:
    """Compile `text`, or take it from the cache, and return a function that gives the address of a name in it."""
    with LOCK:
        binding = llvm()
        made, _, _ = machine()
        code = _object_code(text)  # first: an engine that is dropped takes its target machine with it
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), made)
        ENGINES.append(engine)
        engine.add_object_file(binding.object_file.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return engine.get_function_address


STEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def step(address: int) -> Any:
    """The function at `address`: ``f(table, from, to, thread)``, with its address as an attribute."""
    function: Any = STEP(address)
    function.address = address
    return function


@functools.cache
def shared(dtype: Any) -> dict[str, Any]:
    """Load the functions that all cells of a dtype share, and make them known to those that call them; some of them."""
    with LOCK:
        t = typed(dtype)
        parts = (functions, products, sums, transposition, spreading, squares, losses)
        address = load(named("\n".join(part(t) for part in parts), t))
        for name in SHARED:
            llvm().add_symbol(f"tinygrad_{name}_{t.suffix}", address(f"tinygrad_{name}_{t.suffix}"))
        called = ("product", "add_rows", "square_sum", "surprise", "slope")
        return {name: step(address(f"tinygrad_{name}_{t.suffix}")) for name in called}


@functools.cache
def typed(dtype: Any) -> Typed:
    """The names of `dtype` on this machine."""
    return Typed(dtype, machine()[1])


def compiled(text: str, dtype: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The functions of a cell, ``f(table, from, to, thread)``, by name."""
    shared(dtype)
    t = typed(dtype)
    address = load(named(functions(t) + declarations(t) + text, t))
    return {name: step(address(name)) for name in names}


SHARING = """
; Numbers at %m: the address of how many jobs were posted; the function of this job; its table; how many of its parts
; other threads have done.

; The caller's first part: the job is posted when the caller does not hold Python's lock any more.
define void @lead(ptr %m, i64 %low, i64 %high, i64 %k) {
  %posted = load ptr, ptr %m
  %before = atomicrmw add ptr %posted, i64 1 seq_cst
  %f.at = getelementptr i64, ptr %m, i64 1
  %t.at = getelementptr i64, ptr %m, i64 2
  %f = load ptr, ptr %f.at
  %t = load ptr, ptr %t.at
  tail call void %f(ptr %t, i64 %low, i64 %high, i64 %k)
  ret void
}

; A part of another thread, which then stays awake for a moment, until another job is posted.
define void @assist(ptr %m, i64 %low, i64 %high, i64 %k) {
  %posted = load ptr, ptr %m
  %seen = load atomic i64, ptr %posted acquire, align 8
  %f.at = getelementptr i64, ptr %m, i64 1
  %t.at = getelementptr i64, ptr %m, i64 2
  %done.at = getelementptr i64, ptr %m, i64 3
  %f = load ptr, ptr %f.at
  %t = load ptr, ptr %t.at
  call void %f(ptr %t, i64 %low, i64 %high, i64 %k)
  %before = atomicrmw add ptr %done.at, i64 1 seq_cst
  call void @watch(ptr %posted, i64 %seen, i64 LOOKS, i64 0)
  ret void
}

; Return when the number at %at is not %seen any more, at the latest after so many looks.
define void @watch(ptr %at, i64 %seen, i64 %looks, i64 %k) {
entry:
  br label %look
look:
  %i = phi i64 [0, %entry], [%next, %again]
  %now = load atomic i64, ptr %at acquire, align 8
  %same = icmp eq i64 %now, %seen
  br i1 %same, label %again, label %end
again:
  PAUSE
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %looks
  br i1 %more, label %look, label %end
end:
  ret void
}
"""


@functools.cache
def sharing(looks: int) -> dict[str, Any]:
    """The functions of `SHARING`, with the processor's way to wait a moment."""
    made, _, _ = machine()
    pause = declare = ""
    if made.triple.startswith("x86"):
        pause, declare = "call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"
    elif made.triple.startswith(("aarch64", "arm64")):
        pause, declare = "call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"
    found = load(SHARING.replace("PAUSE", pause).replace("LOOKS", str(looks)) + declare)
    return {name: step(found(name)) for name in ("lead", "assist", "watch")}
