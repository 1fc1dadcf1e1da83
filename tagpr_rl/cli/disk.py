"""Errors of the file system in words: which file, what is wrong, and which option or key chooses another one."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

_NO_SPACE = "no space is left; free some"
_TOO_MANY = "too many files are open at once; raise the limit (`ulimit -n`)"
_FAILED = "the disk or the network's file system failed; look at its log, then run the command again"
_WORDS = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EACCES: "no permission for this user",
    errno.EPERM: "no permission for this user",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "it does not exist, and cannot be made there",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, and a file is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: _TOO_MANY,
    errno.ENFILE: _TOO_MANY,
    errno.EIO: _FAILED,
    errno.ESTALE: _FAILED,
}
_WITHOUT_NAME = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
"""What a write or an open reports without a file's name. Others without a name are no file's: a socket's, a pipe's."""
_TEXTS = {
    "No space left": errno.ENOSPC,
    "os error 28": errno.ENOSPC,
    "disk is full": errno.ENOSPC,
    "quota exceeded": errno.EDQUOT,
    "PytorchStreamWriter failed writing": errno.ENOSPC,
    "Input/output error": errno.EIO,
    "disk I/O error": errno.EIO,
    "os error 5)": errno.EIO,
    "Stale file handle": errno.ESTALE,
    "Too many open files": errno.EMFILE,
    "readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
}
"""What libraries say that write files without Python: safetensors, torch.save, SQLite, Arrow."""


def disk_error(error: BaseException, words: Sequence[str]) -> str | None:
    """The message for an error that comes from the file system, or None for any other error.

    `words` is the command line: the message names the option or key that the file was given with.
    """
    for cause in _chain(error):
        number, name = None, None
        if isinstance(cause, OSError) and cause.errno is not None:
            number, name = cause.errno, cause.filename
            if name is None and number not in _WITHOUT_NAME:
                continue
        else:
            if not (isinstance(cause, OSError | sqlite3.Error | RuntimeError) or "Safetensor" in type(cause).__name__):
                continue
            number = next((number for text, number in _TEXTS.items() if text in str(cause)), None)
        if number is not None:
            file = os.fsdecode(name) if isinstance(name, str | bytes) else ""
            what = _WORDS.get(number, os.strerror(number))
            notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
            target = file or "a file of the run, or the printed output"
            return f"cannot use {target}: {what}; {_remedy(file, words)}{notes}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its causes, and the error that Ray wrapped."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__


def _remedy(file: str, words: Sequence[str]) -> str:
    """`choose another with --out`: the word of the command line that `file` comes from."""
    path = Path(os.path.abspath(file)) if file else None
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        given = Path(os.path.abspath(os.path.expanduser(value if equals else word)))
        if path is None or not (path == given or given in path.parents) or given == Path.cwd():
            continue
        before = words[position - 1] if position else ""
        if equals:
            return f"choose another with {name}=<folder>" if name == "out" else f"choose another with {name}"
        return f"choose another with {before}" if before.startswith("--") else f"it was given as {word}"
    return "choose another folder with out=<folder>, or --out where the command has it"
