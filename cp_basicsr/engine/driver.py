"""The loops around the kernels, compiled once for this processor: take a band, fill scratch, compute, store.

Written with LLVM's IR builder because there is no compiler where the plugin is installed. What it does, in words::

    while a band is left:                             # several threads run this at once
        for each segment of the band:
            copy its inputs with their border into scratch
            for each block of output channels, row and vector of 16 pixels:
                sums = kernel(scratch, weights of the level)
                output = shuffle(activation(sums + bias)) * scale + residual
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable
from functools import cache

from llvmlite import binding, ir

from .instructions import PIXELS
from .ir import F32, I32, I64, POINTER, Builder, i64
from .job import BAND, PLANE, SEGMENT, Activation, Job, LevelCode
from .machine_code import new_target_machine

VECTOR = ir.VectorType(F32, PIXELS)
LANES = ir.VectorType(I64, PIXELS)
ZEROS = ir.Constant(VECTOR, [0.0] * PIXELS)
SHUFFLES = (1, 2, 3, 4)  # factors of PixelShuffle that the store does by itself
MOST_OUTPUTS = 32  # sums that a kernel may write at once


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
        self.sums = self.b.alloca(VECTOR, size=i64(MOST_OUTPUTS))
        self.sums.align = 64
        self._take_bands(function)
        self.b.ret_void()

    def _take_bands(self, function: ir.Function) -> None:
        """Bands go to whichever thread is free."""
        b = self.b
        take, run, done = (function.append_basic_block(name) for name in ('take', 'run', 'done'))
        counter = b.field_address(self.job, Job, 'next_band')
        b.branch(take)
        b.position_at_end(take)
        band = b.atomic_rmw('add', counter, i64(1), 'monotonic')
        b.cbranch(b.icmp_signed('<', band, self.fields['band_count']), run, done)
        b.position_at_end(run)
        band = b.record(self.fields['bands'], band, BAND)
        with b.loop(band['count']) as index:
            segment = b.record(self.fields['segments'], b.add(band['first'], index), SEGMENT)
            self._fill(segment)
            self._compute(segment)
        b.branch(take)
        b.position_at_end(done)

    def _fill(self, segment: dict[str, ir.Value]) -> None:
        """Copy a segment's inputs into scratch, zeros where they lie outside of the image."""
        b, f = self.b, self.fields
        top = b.sub(b.mul(segment['y'], f['stride']), f['pad_rows'])
        left = b.sub(b.mul(segment['x'], f['stride']), f['pad_columns'])
        rows = b.total((b.sub(segment['rows'], i64(1)), f['stride']), f['kernel_rows'])
        reach = b.sdiv(b.sub(b.add(f['kernel_columns'], f['stride']), i64(1)), f['stride'])
        vectors = b.add(segment['vectors'], b.sdiv(b.add(reach, i64(PIXELS - 2)), i64(PIXELS)))
        first_plane = b.mul(segment['image'], f['channels'])
        with b.loop(f['channels']) as channel:
            entry = b.at(f['planes'], b.mul(b.add(first_plane, channel), i64(PLANE.itemsize)), ir.IntType(8))
            plane, stride = b.element(entry, i64(0), POINTER), b.element(entry, i64(1), I64)
            target_plane = b.at(self.scratch, b.mul(channel, f['scratch_plane']))
            with b.loop(rows) as row:
                target = b.at(target_plane, b.mul(row, f['scratch_row']))
                y = b.add(top, row)
                inside = b.icmp_unsigned('<', y, f['height'])
                with b.if_else(inside) as (copy, clear):
                    with copy:
                        source = b.at(plane, b.mul(y, stride))
                        self._copy_row(source, target, left, vectors)
                    with clear, b.loop(f['stride']) as phase, b.loop(vectors) as v:
                        place = b.total((phase, f['scratch_phase']), (v, i64(PIXELS)))
                        b.put_vector(ZEROS, b.at(target, place))

    def _copy_row(self, source: ir.Value, target: ir.Value, left: ir.Value, vectors: ir.Value) -> None:
        """One input row; ``left`` is the image column of its first value and may lie outside."""
        b, f = self.b, self.fields
        with b.if_else(b.icmp_signed('==', f['stride'], i64(1))) as (unit, strided):
            with unit, b.loop(vectors) as v:
                shift = b.mul(v, i64(PIXELS))
                first = b.add(left, shift)
                place = b.at(target, shift)
                whole = b.and_(
                    b.icmp_signed('>=', first, i64(0)),
                    b.icmp_signed('<=', b.add(first, i64(PIXELS)), f['width']),
                )
                with b.if_else(whole) as (plain, masked):
                    with plain:
                        b.put_vector(b.vector(b.at(source, first), VECTOR), place)
                    with masked:
                        lanes = b.add(b.splat(first, LANES), ir.Constant(LANES, list(range(PIXELS))))
                        inside = b.icmp_unsigned('<', lanes, b.splat(f['width'], LANES))
                        b.put_vector(self._masked_load(b.at(source, first), inside), place)
            with strided, b.loop(f['stride']) as phase, b.loop(b.mul(vectors, i64(PIXELS))) as step:
                column = b.total(left, phase, (step, f['stride']))
                place = b.at(target, b.total((phase, f['scratch_phase']), step))
                with b.if_else(b.icmp_unsigned('<', column, f['width'])) as (copy, clear):
                    with copy:
                        b.store(b.element(source, column), place)
                    with clear:
                        b.store(ir.Constant(F32, 0.0), place)

    def _masked_load(self, pointer: ir.Value, lanes: ir.Value) -> ir.Value:
        name = f'llvm.masked.load.v{PIXELS}f32.p0'
        kind = ir.FunctionType(VECTOR, [POINTER, I32, lanes.type, VECTOR])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.b.call(function, [pointer, ir.Constant(I32, 4), lanes, ZEROS])

    def _compute(self, segment: dict[str, ir.Value]) -> None:
        b, f = self.b, self.fields
        level = b.at(f['levels'], b.mul(segment['level'], i64(ctypes.sizeof(LevelCode))), ir.IntType(8))
        entries, weights, bias = (b.field(level, LevelCode, name) for name, _ in LevelCode._fields_)
        blocks = b.sdiv(b.sub(b.add(f['outputs'], f['block']), i64(1)), f['block'])
        kernel = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER])
        with b.loop(blocks) as block:
            entry, values = b.element(entries, block, POINTER), b.element(weights, block, POINTER)
            first = b.mul(block, f['block'])
            left = b.sub(f['outputs'], first)
            count = b.select(b.icmp_signed('<', left, f['block']), left, f['block'])
            with b.loop(segment['rows']) as row, b.loop(segment['vectors']) as vector:
                x = b.add(segment['x'], b.mul(vector, i64(PIXELS)))
                y = b.add(segment['y'], row)
                self._ask_for((segment['image'], y, x), first, count)
                place = b.total((b.mul(row, f['stride']), f['scratch_row']), (vector, i64(PIXELS)))
                self._call(kernel, entry, [b.at(self.scratch, place), values, self.sums])
                self._store((segment['image'], y, x), first, count, bias)

    def _ask_for(self, place: tuple[ir.Value, ir.Value, ir.Value], first: ir.Value, count: ir.Value) -> None:
        """Have the memory that the store will need fetched while the kernel runs: every channel is on another page."""
        b, f = self.b, self.fields
        image, y, x = place
        shuffle = b.sext(f['shuffle'], I64)
        area = b.mul(shuffle, shuffle)
        row, column, plane = b.mul(y, shuffle), b.mul(x, shuffle), b.sdiv(first, area)
        for name, write in (('output', 1), ('residual', 0)):
            given = b.icmp_unsigned('!=', b.ptrtoint(f[name], I64), i64(0))
            start = b.total((image, f[f'{name}_image']), (plane, f[f'{name}_channel']), (row, f[f'{name}_row']), column)
            with b.if_then(given), b.loop(b.sdiv(count, area)) as index:
                self._prefetch(b.at(f[name], b.add(start, b.mul(index, f[f'{name}_channel']))), write)

    def _prefetch(self, pointer: ir.Value, write: int) -> None:
        name = 'llvm.prefetch.p0'
        kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        nearest, data = 3, 1
        self.b.call(function, [pointer, I32(write), I32(nearest), I32(data)])

    def _call(self, kind: ir.FunctionType, entry: ir.Value, arguments: list[ir.Value]) -> None:
        self.b.call(_Callee(entry, kind), arguments)

    def _store(
        self, place: tuple[ir.Value, ir.Value, ir.Value], first: ir.Value, count: ir.Value, bias: ir.Value
    ) -> None:
        """Finish the sums of one vector: one loop for each kind of epilogue, so that none is asked for inside."""
        b, f = self.b, self.fields
        after = b.append_basic_block('stored')
        added = b.zext(b.icmp_unsigned('!=', b.ptrtoint(f['residual'], I64), i64(0)), I32)
        kinds = list(itertools.product(SHUFFLES, Activation, (False, True)))
        kind = b.add(b.mul(b.add(b.mul(f['shuffle'], I32(len(Activation))), f['activation']), I32(2)), added)
        cases = b.switch(kind, after)
        for shuffle, activation, residual in kinds:
            case = b.append_basic_block(f'shuffle{shuffle}_{activation.name.lower()}')
            b.position_at_end(case)
            cases.add_case(I32((shuffle * len(Activation) + activation) * 2 + residual), case)
            self._store_loop(shuffle, activation, residual, place, first, count, bias)
            b.branch(after)
        b.position_at_end(after)

    def _store_loop(
        self,
        shuffle: int,
        activation: Activation,
        residual: bool,
        place: tuple[ir.Value, ir.Value, ir.Value],
        first: ir.Value,
        count: ir.Value,
        bias: ir.Value,
    ) -> None:
        """``shuffle`` neighbouring channels become one row of neighbouring pixels (PixelShuffle); 1 leaves them."""
        b, f = self.b, self.fields
        image, y, x = place
        with b.loop(b.sdiv(count, i64(shuffle))) as step:
            index = b.mul(step, i64(shuffle))
            channel = b.add(first, index)
            values = [
                self._finished(activation, b.add(index, i64(j)), b.add(channel, i64(j)), bias) for j in range(shuffle)
            ]
            row = b.total((y, i64(shuffle)), b.srem(b.sdiv(channel, i64(shuffle)), i64(shuffle)))
            plane = b.sdiv(channel, i64(shuffle * shuffle))
            column = b.mul(x, i64(shuffle))
            offsets = {
                name: b.total(
                    (image, f[f'{name}_image']), (plane, f[f'{name}_channel']), (row, f[f'{name}_row']), column
                )
                for name in ('output', 'residual')
            }
            for part, value in enumerate(self._interleaved(values)):
                if residual:
                    add = b.at(f['residual'], b.add(offsets['residual'], i64(part * PIXELS)))
                    value = b.fadd(b.fmul(value, b.splat(f['scale'], VECTOR)), b.vector(add, VECTOR))
                b.put_vector(value, b.at(f['output'], b.add(offsets['output'], i64(part * PIXELS))))

    def _finished(self, activation: Activation, index: ir.Value, channel: ir.Value, bias: ir.Value) -> ir.Value:
        b = self.b
        value = b.load(b.at(self.sums, index, VECTOR), typ=VECTOR, align=64)
        value = b.fadd(value, b.splat(b.element(bias, channel), VECTOR))
        if activation is Activation.NONE:
            return value
        # Written so that NaN stays NaN.
        below = ZEROS
        if activation is Activation.SLOPE:
            below = b.fmul(value, b.splat(b.element(self.fields['slopes'], channel), VECTOR))
        return b.select(b.fcmp_ordered('<', value, ZEROS), below, value)

    def _interleaved(self, values: list[ir.Value]) -> list[ir.Value]:
        """From vectors a, b, ...: a0 b0 ... a1 b1 ..., as many vectors."""
        b, n = self.b, len(values)
        if n == 1:
            return values
        wide = values + [ZEROS] * (-n % 2)
        pairs = [self._picked(p, q, range(2 * PIXELS)) for p, q in zip(wide[::2], wide[1::2], strict=True)]
        if len(pairs) == 1:
            pairs.append(pairs[0])
        everything = b.shuffle_vector(*pairs, ir.Constant(ir.VectorType(I32, 4 * PIXELS), list(range(4 * PIXELS))))
        order = [(k % n) * PIXELS + k // n for k in range(n * PIXELS)]
        return [self._picked(everything, everything, order[k : k + PIXELS]) for k in range(0, n * PIXELS, PIXELS)]

    def _picked(self, first: ir.Value, second: ir.Value, lanes: Iterable[int]) -> ir.Value:
        lanes = list(lanes)
        return self.b.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


class _Callee:
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
    ask = _Callee(b.load(thread_number, typ=POINTER), ir.FunctionType(I32, []))
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
