"""New folders that appear whole or not at all, and a bar while they are written."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end, and is removed where that is not reached.

    Raises ValueError where the disk has not `size` bytes free, or runs full in between.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < size:
        raise ValueError(f"{out}: {size / 1e9:.1f} GB are needed, the disk has {free / 1e9:.1f} GB free: make room")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        partial.rename(out)
    except (OSError, RuntimeError) as error:
        if not _disk_full(error):
            raise
        raise ValueError(f"{out}: the disk is full, nothing was kept: make room for {size / 1e9:.1f} GB") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _disk_full(error: BaseException) -> bool:
    """torch.save hides the operating system's error in one of its own."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    earlier = error.__cause__ or error.__context__
    return "file write failed" in str(error) or (earlier is not None and _disk_full(earlier))


@contextmanager
def progress(title: str, size: int) -> Iterator[Callable[[int], None]]:
    """A function that takes how many more bytes are done, of `size`; shown on a terminal only."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=size)
        yield lambda count: bar.advance(task, count)
