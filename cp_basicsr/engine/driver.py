"""The loops around the kernels, compiled once for this processor: take a band, fill scratch, compute, store.

Written with LLVM's IR builder because there is no compiler where the plugin is installed. What it does, in words::

    while a band is left:                             # several threads run this at once
        for each segment of the band:
            copy its inputs with their border into scratch
            for each block of output channels:
                for each part of its code, and each one or two rows:
                    sums += kernel(scratch, weights of the level)
                output = shuffle(activation(sums + bias)) * scale + residual
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from llvmlite import binding, ir

from .filling import Filling
from .instructions import PIXELS
from .ir import I32, I64, POINTER, Builder, i64
from .job import BAND, SEGMENT, Job, LevelCode
from .machine_code import new_target_machine
from .storing import Storing


class _Driver:
    """Builds the function ``void run(Job *job, float *scratch)``."""

    def __init__(self, triple: str) -> None:
        self.module = ir.Module('cp_basicsr_driver')
        self.module.triple = triple
        kind = ir.FunctionType(ir.VoidType(), [POINTER, POINTER])
        function = ir.Function(self.module, kind, 'run')
        self.job, self.scratch = function.args
        self.b = Builder(function.append_basic_block('entry'))
        self.fields = {name: self.b.field(self.job, Job, name) for name, _ in Job._fields_ if name != 'next_band'}
        self.filling = Filling(self.b, self.fields, self.scratch)
        self.storing = Storing(self.b, self.fields)
        self._take_bands(function)
        self.b.ret_void()

    def _take_bands(self, function: ir.Function) -> None:
        """Bands go to whichever thread is free."""
        b, f = self.b, self.fields
        take, run, done = (function.append_basic_block(name) for name in ('take', 'run', 'done'))
        counter = b.field_address(self.job, Job, 'next_band')
        b.branch(take)
        b.position_at_end(take)
        taken = b.atomic_rmw('add', counter, i64(1), 'monotonic')
        b.cbranch(b.icmp_signed('<', taken, f['band_count']), run, done)
        b.position_at_end(run)
        mirrored = b.sub(b.sub(f['band_count'], i64(1)), taken)
        upwards = b.icmp_signed('!=', f['upwards'], i64(0))
        band = b.record(f['bands'], b.select(upwards, mirrored, taken), BAND)
        with b.loop(band['count']) as index:
            segment = b.record(f['segments'], b.add(band['first'], index), SEGMENT)
            self.filling.fill(segment)
            self._compute(segment)
        b.branch(take)
        b.position_at_end(done)

    def _compute(self, segment: dict[str, ir.Value]) -> None:
        b, f = self.b, self.fields
        level = b.at(f['levels'], b.mul(segment['level'], i64(ctypes.sizeof(LevelCode))), ir.IntType(8))
        entries, weights, bias, parts = (b.field(level, LevelCode, name) for name, _ in LevelCode._fields_)
        blocks = b.rounded_up(f['outputs'], f['block'])
        row_groups = b.rounded_up(segment['rows'], f['rows_at_once'])
        kernel = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, I64])
        sums = b.at(self.scratch, f['sums'])
        area = b.mul(b.mul(f['rows_at_once'], f['block']), i64(PIXELS))
        with b.loop(blocks) as block:
            first = b.mul(block, f['block'])
            count = b.minimum(b.sub(f['outputs'], first), f['block'])
            with b.loop(parts) as part, b.loop(row_groups) as group:
                index = b.total((block, parts), part)
                row = b.mul(group, f['rows_at_once'])
                height = b.minimum(b.sub(segment['rows'], row), f['rows_at_once'])
                with b.loop(height) as down:
                    self.storing.ask_for(segment, b.add(row, down), first, count, (part, parts))
                b.call(
                    Callee(b.element(entries, index, POINTER), kernel),
                    [
                        b.at(self.scratch, b.total((b.total((row, f['stride'])), f['scratch_row']))),
                        b.element(weights, index, POINTER),
                        b.at(sums, b.total((b.mul(group, segment['vectors']), area))),
                        segment['vectors'],
                    ],
                )
            with b.loop(segment['rows']) as row:
                group, down = b.sdiv(row, f['rows_at_once']), b.srem(row, f['rows_at_once'])
                begun = b.total((b.mul(group, segment['vectors']), area), (b.mul(down, f['block']), i64(PIXELS)))
                self.storing.store(b.at(sums, begun), area, segment, row, first, count, bias)


class Callee:
    """A pointer as something that the builder can call."""

    def __init__(self, pointer: ir.Value, kind: ir.FunctionType) -> None:
        self._pointer = pointer
        self.function_type = kind
        self.type = pointer.type
        self.calling_convention = ''

    def get_reference(self) -> str:
        return self._pointer.get_reference()


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


class CompiledDriver:
    """The driver's functions in memory.

    Attributes:
        run: runs bands of the job at the first address, with the scratch memory at the second, until none is left.
            Called through ctypes it lets other Python threads run.
        member: address of the function that each thread of an OpenMP team calls with a :class:`Team`.
    """

    def __init__(self) -> None:
        machine = new_target_machine()
        source = _Driver(machine.triple).module
        _add_member(source)
        module = binding.parse_assembly(str(source))
        module.verify()
        builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
        builder.getModulePassManager().run(module, builder)
        self._engine = binding.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
        self.run: Callable[[int, int], None] = signature(self._engine.get_function_address('run'))
        self.member: int = self._engine.get_function_address('member')

    def use_thread_number(self, function: Callable[[], int]) -> None:
        """Tell :attr:`member` which C function gives a thread its number."""
        pointer = ctypes.c_void_p.from_address(self._engine.get_global_value_address('thread_number'))
        pointer.value = ctypes.cast(function, ctypes.c_void_p).value


@cache
def driver() -> CompiledDriver:
    """The driver, compiled once."""
    return CompiledDriver()
