"""Which file names are artifacts, what group they belong to, and how a hostile name is shown."""

from collections.abc import Iterable

MAX_GROUP_KEY_CHARS = 200
_IGNORED_ENDINGS = (".tmp", ".part", "~")


class ArtifactNames:
    """The known suffixes; the longest that fits a name decides what precedes it: the group key."""

    def __init__(self, suffixes: Iterable[str]) -> None:
        self.suffixes = tuple(sorted(set(suffixes), key=lambda suffix: (-len(suffix), suffix)))

    def split(self, name: str) -> tuple[str, str] | None:
        """(group key, suffix) of an artifact's name; None for any other name."""
        if not name.endswith(self.suffixes) or is_ignored(name):
            return None
        suffix = next(suffix for suffix in self.suffixes if name.endswith(suffix))
        return name[: -len(suffix)], suffix


def is_ignored(name: str) -> bool:
    """True for names under which producers write before they rename, and hidden ones."""
    return name.startswith(".") or name.endswith(_IGNORED_ENDINGS)


def is_searched(directory_name: str, names: ArtifactNames) -> bool:
    """True for the name of a directory that is searched for artifacts."""
    is_plain = not is_ignored(directory_name) and names.split(directory_name) is None
    return is_plain and name_fault(directory_name) is None


def name_fault(text: str) -> str | None:
    """Why a group key or a directory's name cannot be used in URLs, pages and logs; None if it can.

    Not printable are control, format (bidi marks, zero-width) and private characters, all separators but the plain
    space, and the lone surrogates that stand for bytes which are not UTF-8.
    """
    if not text:
        return "nothing precedes the suffix"
    if len(text) > MAX_GROUP_KEY_CHARS:
        return f"longer than {MAX_GROUP_KEY_CHARS} characters"
    if not text.isprintable():
        return "has characters that cannot be printed, or is not UTF-8"
    return None


def displayed(text: str) -> str:
    r"""The text with everything unprintable escaped: `\x0a`, `\u202e`, `\xff` for a byte that is not UTF-8."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries an undecodable byte
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
