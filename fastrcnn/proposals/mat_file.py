"""MATLAB level 5 MAT-files (saved with -v6 or -v7), as far as cell arrays of numbers and text need it.

scipy.io.loadmat reads them too, but damaged files crash it together with the interpreter: of 200 mutated ones, at least
one did (scipy 1.17). The format is described in "MAT-File Format" (The MathWorks). Files of today's machines are
little-endian; others are refused.
"""

import math
import struct
import zlib

import numpy as np

HEADER = 128  # bytes; the last four are the version and the mark of byte order
NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
TEXTS = {2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
MATRIX, COMPRESSED = 14, 15
CELL, CHAR, NUMERIC = 1, 4, range(6, 16)  # classes of arrays
COMPLEX = 0x0800  # flag of an array

Value = np.ndarray | str | list  # an array, a text, or the entries of a cell array in MATLAB's order


def read_mat(data: bytes, max_compression: int) -> dict[str, Value]:
    """The variables of a file, by name. Raises ValueError (or zlib.error) for what is damaged or not understood.

    A variable that inflates to more than max_compression times its size is refused.
    """
    if len(data) < HEADER or data[124:128] != b"\x00\x01IM":
        raise ValueError("it is not a MAT-file of level 5; save it in MATLAB with -v7")
    variables = {}
    rest = memoryview(data)[HEADER:]
    while rest:
        kind, content, rest = _element(rest)
        if kind == COMPRESSED:
            inflate = zlib.decompressobj()
            inflated = inflate.decompress(content, max_compression * len(content))
            if inflate.unconsumed_tail:
                raise ValueError("it is a decompression bomb")
            kind, content, _ = _element(memoryview(inflated))
        if kind != MATRIX:
            raise ValueError(f"it has an element of type {kind} where a variable should be")
        name, value = _matrix(content, nested=False)
        variables[name] = value
    return variables


def _element(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """(type, content, what follows) of the data element that `data` starts with."""
    if len(data) < 8:
        raise ValueError("it is cut short")
    kind, size = struct.unpack_from("<II", data)
    if kind >> 16:  # up to 4 bytes share the tag
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        if size > 4:
            raise ValueError("it has a damaged element")
    else:
        start = 8
        end = start + size + (0 if kind == COMPRESSED else -size % 8)
    if start + size > len(data):
        raise ValueError("it is cut short")
    return kind, data[start : start + size], data[end:]


def _matrix(content: memoryview, nested: bool) -> tuple[str, Value]:
    """(name, value) of an array: numbers, text, or (unless `nested`) a cell array of these."""
    if nested and not content:
        return "", np.zeros((0, 0))  # an entry that was never set
    _, flags, content = _element(content)
    _, shape, content = _element(content)
    _, name, content = _element(content)
    if len(flags) != 8 or len(shape) % 4:
        raise ValueError("it has a damaged array")
    flags, shape = struct.unpack_from("<I", flags)[0], np.frombuffer(shape, "<i4").tolist()
    kind = flags & 0xFF
    label = bytes(name).decode("latin-1")
    if kind == CELL and not nested and min(shape, default=0) >= 0:
        entries = []
        for _ in range(math.prod(shape)):
            entry_type, entry, content = _element(content)
            if entry_type != MATRIX:
                raise ValueError(f"its cell array {label} is damaged")
            entries.append(_matrix(entry, nested=True)[1])
        return label, entries
    storage, values, _ = _element(content)
    if kind == CHAR and storage in TEXTS:
        return label, bytes(values).decode(TEXTS[storage])
    if kind in NUMERIC and storage in NUMBERS and not flags & COMPLEX and min(shape, default=-1) >= 0:
        return label, np.frombuffer(values, NUMBERS[storage]).reshape(shape, order="F")
    raise ValueError(
        f"it has an array {label} of class {kind}, which is neither real numbers nor text nor cells of these"
    )
