"""int8 columns as the left operand of a product on Hopper, W^T x: widened in registers, where a wgmma takes them from.

So what was widened never passes through shared memory. The matrix lies with its columns beside each other, the operand
wants the lines of the sum beside each other: `ldmatrix` turns pairs of columns, and the two of a pair go to two of the
operand's rows, eight apart. `turned` puts the columns of the result in their order again.

A byte b becomes bfloat16 exactly: 0x4300 | (b & 127) is 128 + (b & 127), 0x4300 | (b & 128) is 128 or 256, and their
difference is b's value.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

COLUMNS = 64  # of one product: the height of a wgmma
LINES = 32  # of the sum that one ldmatrix takes in
OWN = None  # of a block's two COLUMNS those of the warpgroup's number
# Of (rows, COLUMNS) with the columns in order: a warp has 16 of them, a thread both columns of eight pairs' one.
TURNED = plgpu.Layout.TILED(
    plgpu.Tiling(((8, COLUMNS), (8, 16), (2, 2))), warp_dims=(-5,), lane_dims=(-3, -4), vector_dim=-1
)
ROW, COLUMN = TURNED.reduce(1), TURNED.reduce(0)  # one value for each row, for each column
_WIDEN = """{{
    .reg .b32 pair, low, sign;
    shr.b32 pair, $1, {shift};
    lop3.b32 low, pair, 0x007f007f, 0x43004300, 0xea;
    lop3.b32 sign, pair, 0x00800080, 0x43004300, 0xea;
    sub.bf16x2 $0, low, sign;
}}"""


def tile(*shape):
    """Shared memory of int8 blocks (..., lines, columns), 64 or 128 columns."""
    return plgpu.SMEM(shape, jnp.int8, transforms=_transforms(shape[-1]))


def _transforms(width: int):
    return plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(width)


def operand(block, part: int | None) -> jax.Array:
    """bfloat16 (COLUMNS, lines): the `part`-th COLUMNS columns of a block (lines, columns) of a `tile`, each 16 of
    them in the order 0, 2, ... 14, 1, 3, ... 15.
    """
    lines, width = block.shape
    result = plgpu.ShapeDtypeStruct((COLUMNS, lines), jnp.bfloat16, layout=plgpu.Layout.WGMMA)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(_transforms(width)),), return_type=result)
    def load(ctx, memory):
        del ctx
        return _load(memory, lines, width, part)

    return load(block)


def _load(memory, lines: int, width: int, part: int | None):
    from jax.experimental.mosaic import gpu as mgpu
    from jax.experimental.mosaic.gpu import utils

    ir, arith, llvm, nvvm = utils.ir, utils.arith, utils.llvm, utils.nvvm
    i8, i32 = (ir.IntegerType.get_signless(bits) for bits in (8, 32))
    pairs = ir.VectorType.get((2,), ir.BF16Type.get())

    def number(value: int):
        return arith.constant(i32, ir.IntegerAttr.get(i32, value))

    # A lane's line of the first LINES, and there its warp's 16 columns, a chunk of 16 bytes; chunks lie swizzled.
    thread = utils.thread_idx()
    lane, warp = arith.andi(thread, number(31)), arith.shrui(thread, number(5))
    chunk = arith.andi(warp, number(7)) if part is None else arith.addi(arith.andi(warp, number(3)), number(4 * part))
    swizzle = arith.andi(lane if width == 128 else arith.shrui(lane, number(1)), number(width // 16 - 1))
    place = arith.addi(arith.muli(lane, number(width)), arith.shli(arith.xori(chunk, swizzle), number(4)))
    start = utils.getelementptr(utils.memref_ptr(memory), [place], i8)
    shape = mgpu.WGMMA_LAYOUT.registers_shape((COLUMNS, lines))
    registers = np.empty((lines // 8, 2), dtype=object)
    for block in range(lines // LINES):
        four = nvvm.ldmatrix(
            utils.getelementptr(start, [block * LINES * width], i8),
            layout=nvvm.MMALayout.col,
            num=4,
            shape=ir.Attribute.parse("#nvvm.ld_st_matrix_shape<m=8, n=8>"),
            elt_type=nvvm.LdStMatrixEltType.B16,
        )
        for eight in range(4):
            bytes_ = llvm.extractvalue(i32, four, [eight])
            for odd in range(2):  # the first column of each pair, the second
                wide = llvm.inline_asm(i32, [bytes_], _WIDEN.format(shift=8 * odd), "=r,r")
                registers[block * 4 + eight, odd] = utils.bitcast(wide, pairs)
    return mgpu.FragmentedArray(_registers=registers.reshape(shape), _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)


def turned(product: jax.Array) -> jax.Array:
    """float32 (rows, COLUMNS), columns in order, of W^T x (COLUMNS, rows) by an `operand`."""
    columns, rows = product.shape
    result = plgpu.ShapeDtypeStruct((rows, columns), jnp.float32, layout=TURNED)

    @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WGMMA,), return_type=result)
    def turn(ctx, array):
        del ctx
        return _turn(array, rows)

    return turn(product)


def _turn(array, rows: int):
    from jax.experimental.mosaic import gpu as mgpu
    from jax.experimental.mosaic.gpu.utils import ir, vector

    layout, pairs = TURNED.to_mgpu(), ir.VectorType.get((2,), ir.F32Type.get())
    columns = array.registers.reshape(rows // 8, 2)  # of a thread: two rows each
    registers = np.empty((rows // 8, 2), dtype=object)
    for block in range(rows // 8):
        for row in range(2):
            both = [vector.extract(columns[block, odd], [], [row]) for odd in range(2)]
            registers[block, row] = vector.from_elements(pairs, both)
    registers = registers.reshape(layout.registers_shape((rows, COLUMNS)))
    return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)


def add_products(totals, blocks, rows) -> list[jax.Array]:
    """Each total (COLUMNS, rows) + W^T x: blocks are (int8 block (lines, columns), which COLUMNS columns of it); rows
    (rows, lines) bfloat16 in shared memory. One is widened beside the product of the one before.
    """

    def run(accumulators):
        for accumulator, (block, part) in zip(accumulators, blocks, strict=True):
            plgpu.wgmma(accumulator, operand(block, part), rows.transpose((1, 0)))

    return list(pl.run_state(run)(tuple(plgpu.ACC.init(total) for total in totals)))


def zeros(rows: int):
    """A total to begin with."""
    return plgpu.layout_cast(jnp.zeros((COLUMNS, rows), jnp.float32), plgpu.Layout.WGMMA)
