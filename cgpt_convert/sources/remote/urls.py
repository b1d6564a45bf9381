"""URLs and their display names, which never contain a password, query or fragment.

These parts may be secret (signed URLs use the query), so the full URL is stored in this module and
returned only to the code that sends the request.
"""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from cgpt_convert.core.errors import BadRequest

_READ_ONLY = ("http", "https", "hf")
_given: dict[str, str] = {}  # name -> the URL as it was given
_users: dict[tuple[str, str], str] = {}  # scheme and host -> "user:password", given for one URL


def name_of(url: str) -> str:
    """Return the display name of `url`; `url_of` is the inverse.

    Raises BadRequest for a URL that cannot be parsed.
    """
    try:
        scheme, netloc, path, _, _ = urlsplit(url)
    except ValueError as error:
        shown = url.partition("?")[0].rpartition("@")[2]
        hint = "check the URL; write an IPv6 address in brackets, such as [::1]"
        raise BadRequest("the URL is not valid", where=shown, hint=hint) from error
    if not netloc and not path.strip("/"):
        hint = "for example https://HOST/PATH, s3://BUCKET/KEY or hf://OWNER/NAME"
        raise BadRequest("the URL is not complete", where=f"{scheme}://", hint=hint)
    user, at, host = netloc.rpartition("@")
    name = urlunsplit((scheme, host, path, "", ""))
    _users.pop((scheme, host), None)  # a later URL overrides an earlier one
    _given.pop(name, None)
    if at:
        _users[scheme, host] = user
    if name != url:
        _given[name] = url
    return name


def url_of(name: str) -> str:
    """Return the URL for a display name.

    Other files on a host for which a URL with a password was given use the same password.
    """
    if name in _given:
        return _given[name]
    scheme, netloc, path, query, fragment = urlsplit(name)
    user = _users.get((scheme, netloc))
    return urlunsplit((scheme, f"{user}@{netloc}", path, query, fragment)) if user else name


def check_installed(name: str) -> None:
    """Raise BadRequest, with the package to install, if urllib3 is missing."""
    import importlib.util

    if importlib.util.find_spec("urllib3") is None:
        hint = "install it: pip install 'cgpt-convert[remote]'"
        raise BadRequest("URLs require the package urllib3", where=name, hint=hint)


def check_writable(name: str) -> None:
    """Raise BadRequest if the URL called `name` clearly cannot be written to."""
    check_installed(name)
    scheme, _, path = name.partition("://")
    if scheme.lower() in _READ_ONLY:
        hint = "write to a local path, or to a store such as s3://, and copy the result"
        raise BadRequest(f"cannot write to {scheme}:// URLs", where=name, hint=hint)
    if scheme.lower() in ("file", "local"):
        hint = f"pass the path without {scheme}://"
        raise BadRequest(f"cannot write to {scheme}:// URLs", where=name, hint=hint)
    if not path.strip("/").partition("/")[2]:
        hint = f"add the name of the output: {scheme}://BUCKET/NAME"
        raise BadRequest("the URL has no path after the bucket", where=name, hint=hint)
