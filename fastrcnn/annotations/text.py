"""Text files as people's editors leave them: UTF-8, UTF-16, or the encoding of a country."""

import codecs
from collections.abc import Iterator

# Western Europe, China, Japan, Korea, Taiwan, Cyrillic, Central Europe; the last one takes any bytes.
NATIONAL = ("cp1252", "gb18030", "cp932", "cp949", "big5", "cp1251", "cp1250", "latin-1")


def unicode_text(data: bytes) -> str | None:
    """`data` as UTF-8 or UTF-16, without a byte-order mark; None when it is neither."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:2]:  # the first character is ASCII: < or the name of a file
        encoding = "utf-16-be" if data.startswith(b"\0") else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def national_texts(data: bytes) -> Iterator[tuple[str, str]]:
    """(encoding, text) for each national encoding in which `data` may be written; most fit by chance only."""
    for encoding in NATIONAL:
        try:
            yield encoding, data.decode(encoding)
        except UnicodeDecodeError:
            continue
