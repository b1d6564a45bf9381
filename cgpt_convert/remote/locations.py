"""URLs and the names that are shown for them: never with a password, a query or a fragment.

Those may be secrets (a signed URL's are in its query), so they are kept here and given back only
to what sends the request.
"""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

_given: dict[str, str] = {}  # name -> the URL as it was given
_users: dict[tuple[str, str], str] = {}  # scheme and host -> "user:password", given for one URL


def name_of(url: str) -> str:
    """What to call `url` from now on; `url_of` finds the way back."""
    scheme, netloc, path, _, _ = urlsplit(url)
    user, at, host = netloc.rpartition("@")
    name = urlunsplit((scheme, host, path, "", ""))
    _users.pop((scheme, host), None)  # the URL given last is the one that counts
    _given.pop(name, None)
    if at:
        _users[scheme, host] = user
    if name != url:
        _given[name] = url
    return name


def url_of(name: str) -> str:
    """The URL that `name` stands for.

    What lies beside a URL that was given with a password is asked for with that password, too.
    """
    if name in _given:
        return _given[name]
    scheme, netloc, path, query, fragment = urlsplit(name)
    user = _users.get((scheme, netloc))
    return urlunsplit((scheme, f"{user}@{netloc}", path, query, fragment)) if user else name
