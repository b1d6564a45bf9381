"""`hf://owner/name[@revision][/path]`, also `hf://datasets/...`: files on the Hugging Face Hub.

A branch is resolved once and replaced by its commit, so that all reads use the same version.
Credentials follow the conventions of huggingface_hub: HF_TOKEN or `hf auth login`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cgpt_convert.core.errors import BadRequest, CgptError, Unreadable
from cgpt_convert.sources.remote.http import PASSING, HttpObject, HttpRequest, retry_after
from cgpt_convert.sources.remote.remote_object import TransientError, absent
from cgpt_convert.sources.remote.remote_settings import settings, traffic
from cgpt_convert.sources.remote.retry import patiently

_KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}
_COMMIT = r"[0-9a-f]{40}"
_COMMON_REVISIONS = r"refs/(?:pr|convert)/[^/]+"  # the only revisions that may contain a slash
_FORM = rf"(?:(datasets|spaces|models)/)?([^/@]+/[^/@]+)(?:@({_COMMON_REVISIONS}|[^/]+))?(?:/(.*))?"


class HubPath(NamedTuple):
    """A file or folder in a repository; an empty `path` is the whole repository."""

    kind: str  # "model", "dataset" or "space"
    repo: str
    revision: str | None
    path: str

    @property
    def name(self) -> str:
        """The place as a URL."""
        folder = {"dataset": "datasets/", "space": "spaces/"}.get(self.kind, "")
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{folder}{self.repo}{at}" + (f"/{self.path}" if self.path else "")


def parsed(name: str) -> HubPath:
    """Parse `name`; raise BadRequest if it is not a valid hf:// URL."""
    match = re.fullmatch(_FORM, name.removeprefix("hf://"))
    if match is None:
        raise BadRequest(
            "the URL is not a repository on the Hugging Face Hub",
            where=name,
            hint="use the form hf://OWNER/NAME[@REVISION][/FILE]",
        )
    kind, repo, revision, path = match.groups()
    return HubPath(_KINDS.get(kind or "models", "model"), repo, revision, (path or "").strip("/"))


def pinned(name: str) -> tuple[str, list[str]]:
    """Return the place with its revision replaced by the commit, and all files of the repository.

    If `name` already has a commit and a path, no request is sent and the list is empty.
    """
    place = parsed(name)
    if place.path and place.revision and re.fullmatch(_COMMIT, place.revision):
        return name, []
    info = patiently(place.name, functools.partial(_info, place))
    files = [each.rfilename for each in info.siblings or ()]
    return place._replace(revision=info.sha).name, files


def _info(place: HubPath) -> Any:
    library = _library(place.name)
    from huggingface_hub.errors import HfHubHTTPError

    traffic.add(requests=1)
    try:
        return library.HfApi().repo_info(
            place.repo, repo_type=place.kind, revision=place.revision, timeout=settings.timeout
        )
    except HfHubHTTPError as error:
        raise _worded(error, place) from None
    except Exception as error:  # noqa: BLE001  of its HTTP library, which differs between versions
        message = f"the Hub did not respond ({type(error).__name__})"
        hint = "check the network connection and try again"
        raise Unreadable(message, where=place.name, hint=hint) from None


def _worded(error: Any, place: HubPath) -> CgptError | TransientError:
    status = getattr(error.response, "status_code", 0)
    message = f"the Hub responded with {status}"
    if status in PASSING:
        wait = retry_after(error.response.headers.get("Retry-After", ""))
        return TransientError(message, wait)
    if status in (401, 403, 404):
        return BadRequest(
            f"the repository or revision does not exist, or access is denied ({status})",
            where=place.name,
            hint="check the name; for private and gated repositories, set HF_TOKEN or run: "
            "hf auth login",
        )
    return Unreadable(message, where=place.name)


def hub_object(name: str) -> HttpObject:
    """Return the object for the file `name`, which includes a commit."""
    place = parsed(name)
    if not place.path:
        raise absent(name)

    def locate() -> HttpRequest:
        library = _library(name)
        url = library.hf_hub_url(
            place.repo, place.path, repo_type=place.kind, revision=place.revision
        )
        headers: Mapping[str, str] = library.utils.build_hf_headers(library_name="cgpt-convert")
        return HttpRequest(url, headers)

    return HttpObject(name, locate)


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise BadRequest(
            "hf:// URLs require the package huggingface_hub",
            where=name,
            hint="install it: pip install 'cgpt-convert[remote]'",
        ) from None
    return huggingface_hub
