"""Functions written in LLVM IR, compiled in this process, and run by a team of threads that share out the work."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable

from llvmlite import binding, ir

from .ir import I32, I64, POINTER, Builder, i64
from .machine_code import ExecutableMemory, new_target_machine

RETURN = b'\xc3'


class Callee:
    """A pointer as something that the builder can call."""

    def __init__(self, pointer: ir.Value, kind: ir.FunctionType) -> None:
        self._pointer = pointer
        self.function_type = kind
        self.type = pointer.type
        self.calling_convention = ''

    def get_reference(self) -> str:
        return self._pointer.get_reference()


class RoutineSource(ABC):
    """Writes ``void run(Job *job, float *scratch)``: while a piece of work is left, take it and do it.

    Several threads run it at once, each with scratch memory of its own. Subclasses write what is done with one piece.

    Args:
        job: the structure; its fields are loaded once into :attr:`fields`.
        count, following: names of the fields that hold the number of pieces, and the next that no thread has taken yet.
    """

    def __init__(self, job: type[ctypes.Structure], count: str, following: str) -> None:
        self.module = ir.Module(type(self).__name__)
        self.module.triple = binding.get_default_triple()
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER, POINTER]), 'run')
        pointer, self.scratch = function.args
        self.b = b = Builder(function.append_basic_block('entry'))
        self.fields = {name: b.field(pointer, job, name) for name, _ in job._fields_ if name != following}
        self.prepare()
        take, run, done = (function.append_basic_block(name) for name in ('take', 'run', 'done'))
        b.branch(take)
        b.position_at_end(take)
        piece = b.atomic_rmw('add', b.field_address(pointer, job, following), i64(1), 'monotonic')
        b.cbranch(b.icmp_signed('<', piece, self.fields[count]), run, done)
        b.position_at_end(run)
        self.work(piece)
        b.branch(take)
        b.position_at_end(done)
        b.ret_void()

    @abstractmethod
    def prepare(self) -> None:
        """Write what is done once, before the first piece."""

    @abstractmethod
    def work(self, piece: ir.Value) -> None:
        """Write what is done with the piece of this number."""


class Team(ctypes.Structure):
    """What each thread of a team is told: the job, and scratch memory of which every thread takes a stride."""

    _fields_ = [('job', ctypes.c_void_p), ('scratch', ctypes.c_void_p), ('stride', ctypes.c_int64)]


def _add_member(module: ir.Module) -> None:
    """``void member(Team *team)``: finds its number and runs the job with its own scratch memory."""
    run = module.get_global('run')
    thread_number = ir.GlobalVariable(module, POINTER, 'thread_number')
    thread_number.initializer = ir.Constant(POINTER, None)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), 'member')
    (team,) = function.args
    b = Builder(function.append_basic_block('entry'))
    ask = Callee(b.load(thread_number, typ=POINTER), ir.FunctionType(I32, []))
    shift = b.mul(b.sext(b.call(ask, []), I64), b.field(team, Team, 'stride'))
    b.call(run, [b.field(team, Team, 'job'), b.at(b.field(team, Team, 'scratch'), shift, ir.IntType(8))])
    b.ret_void()


class Routine:
    """A source's functions in memory.

    Attributes:
        run: works on the job at the first address, with the scratch memory at the second, until nothing is left.
            Called through ctypes it lets other Python threads run.
        member: address of the function that each thread of an OpenMP team calls with a :class:`Team`.

    Raises:
        EngineUnavailableError: the system gives no executable memory.
    """

    def __init__(self, source: RoutineSource) -> None:
        ExecutableMemory(RETURN)  # LLVM does not say whether the system gave what it asked for
        machine = new_target_machine()
        _add_member(source.module)
        module = binding.parse_assembly(str(source.module))
        module.verify()
        builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
        builder.getModulePassManager().run(module, builder)
        self._engine = binding.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
        self.run: Callable[[int, int], None] = signature(self._engine.get_function_address('run'))
        self.member: int = self._engine.get_function_address('member')
        self._thread_number = ctypes.c_void_p.from_address(self._engine.get_global_value_address('thread_number'))

    def use_thread_number(self, function: Callable[[], int]) -> None:
        """Tell :attr:`member` which C function gives a thread its number."""
        self._thread_number.value = ctypes.cast(function, ctypes.c_void_p).value
