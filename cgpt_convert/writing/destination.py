"""Write to a path or a URL. The upload code is imported for URLs only."""

from __future__ import annotations

from collections.abc import Sequence

from cgpt_convert.plan import FilePlan
from cgpt_convert.sources.paths import is_url
from cgpt_convert.writing import writer
from cgpt_convert.writing.writer import WriteOptions


def write_files(plans: Sequence[FilePlan], folder: str, options: WriteOptions) -> list[str]:
    """Write files into `folder`, a path or URL; return their paths. See `writer.write_files`."""
    if is_url(folder):
        from cgpt_convert.writing.remote_sink import send_files

        return send_files(plans, folder, options)
    return writer.write_files(plans, folder, options)


def write_folder(plans: Sequence[FilePlan], folder: str, options: WriteOptions) -> list[str]:
    """Write a new `folder`, a path or URL, and return its paths. See `writer.write_folder`."""
    if is_url(folder):
        from cgpt_convert.writing.remote_sink import send_folder

        return send_folder(plans, folder, options)
    return writer.write_folder(plans, folder, options)
