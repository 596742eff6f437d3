"""URLs of databases: what a run file may hold, and what a message may say of them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from epim_nas.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

FIELD = "search.storage"
_EXAMPLE = "such as postgresql+psycopg://user:${PGPASSWORD}@host/database"
_VARIABLE = re.compile(r"\$\{(\w+)\}")

_HARMLESS = """
cache check_same_thread immutable isolation_level mode nolock timeout uri vfs

application_name channel_binding client_encoding connect_timeout dbname gssencmode host hostaddr
keepalives keepalives_count keepalives_idle keepalives_interval load_balance_hosts port service
sslcert sslcrl sslmode sslrootcert target_session_attrs tcp_user_timeout

autocommit charset collation local_infile read_timeout ssl ssl_ca ssl_cert ssl_check_hostname
ssl_disabled ssl_verify_cert ssl_verify_identity unix_socket use_unicode write_timeout

applicationintent driver encoding encrypt multisubnetfailover service_name trusted_connection
trustservercertificate
"""
"""Of SQLite, PostgreSQL, MySQL, and others."""

HARMLESS = frozenset(_HARMLESS.split())
"""Keys of a query whose values are no secrets. All others may be: drivers have too many names."""

_secrets: set[str] = set()
"""What this process has put into URLs and no message may say."""


def check_url(url: str) -> str:
    """A storage's URL as a run file may hold it.

    Everything in it may be an environment variable, ``${NAME}``; what is not known to be harmless
    has to be one.

    Raises:
        InputError: not a URL, or one that holds a secret.
    """
    if _VARIABLE.fullmatch(url):
        return url
    marked, mark, _ = _marked(url)
    for part, value in _private(marked):
        if not mark.fullmatch(value):
            raise InputError(
                FIELD,
                f"holds a password or another secret ({part}), which would be stored with the "
                "results",
                f"the name of an environment variable in its place, {_EXAMPLE}",
            )
    return url


def expanded(url: str) -> str:
    """The URL with the values of its environment variables, each quoted as its place needs it.

    Raises:
        InputError: a variable is not set, or its value cannot stand in its place.
    """
    from sqlalchemy.engine import URL

    if whole := _VARIABLE.fullmatch(url):
        parsed = _parsed(_value(whole[1]))
        _secrets.add(_value(whole[1]))
    else:
        marked, mark, names = _marked(url)
        values = [_value(name) for name in names]

        def put(text: str | None) -> str | None:
            return text and mark.sub(lambda match: values[int(match[1])], text)

        refused = InputError(
            FIELD,
            f"the value of an environment variable ({', '.join(f'`{name}`' for name in names)}) "
            "cannot stand in its place in the URL",
            hint="Put a URL as a whole into one variable, and its name alone here.",
        )
        try:
            parsed = URL.create(
                put(marked.drivername) or "",
                put(marked.username),
                put(marked.password),
                put(marked.host),
                None if marked.port is None else int(put(str(marked.port)) or ""),
                put(marked.database),
                {
                    put(key) or "": put(several) or ""
                    if isinstance(several, str)
                    else [put(value) or "" for value in several]
                    for key, several in marked.query.items()
                },
            )
            if _parsed(parsed.render_as_string(hide_password=False)) != parsed:
                raise refused
        except (ValueError, TypeError):
            raise refused from None
    _secrets.update(value for _, value in _private(parsed))
    text = parsed.render_as_string(hide_password=False)
    _secrets.add(text)
    return text


def without_secrets(text: str) -> str:
    """A driver's message without what :func:`expanded` has put into URLs."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _value(name: str) -> str:
    if name not in os.environ:
        raise InputError(
            FIELD,
            f"the environment variable `{name}` is not set",
            hint=f"Type `export {name}=...` first.",
        )
    return os.environ[name]


def _marked(url: str) -> tuple[URL, re.Pattern[str], list[str]]:
    """The URL with a number in place of each variable, the pattern of such, and the names.

    Numbers go through the parsing of every part unchanged, also of the port.
    """
    start = "9"
    while start in url:  # so that no text of the user looks like one
        start += "9"
    names = _VARIABLE.findall(url)
    order = iter(range(len(names)))
    marked = _VARIABLE.sub(lambda _: f"{start}8{next(order):03d}", url)
    if "${" in marked:
        raise InputError(
            FIELD,
            "holds `${`, but not the name of a variable after it",
            "`${NAME}`, of letters, digits and `_`",
        )
    return _parsed(marked), re.compile(rf"{start}8(\d{{3}})"), names


def _parsed(url: str) -> URL:
    """The URL as SQLAlchemy understands it, where it has understood all of it."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
        pieces = url.partition("?")[2]
        # Of what it cannot parse, SQLAlchemy silently drops a part.
        complete = url.isprintable() and len(_query(parsed)) == (
            pieces.count("&") + 1 if pieces else 0
        )
    except (ArgumentError, ValueError):  # such as a port that is no number
        complete = False
    if not complete:
        raise InputError(FIELD, "is not the URL of a storage", f"a database URL {_EXAMPLE}")
    return parsed


def _query(url: URL) -> list[tuple[str, str]]:
    """(key, value) of all parts of the query."""
    return [(key, value) for key, values in url.normalized_query.items() for value in values]


def _private(url: URL) -> list[tuple[str, str]]:
    """(part, its value) of all that is not known to be harmless."""
    found = [("the password", url.password or "")]
    for place in ("host", "database"):
        value = str(getattr(url, place) or "")
        # A password that is not quoted ends up there; names of files may have such characters.
        if re.search("[@;=]", value) and url.get_backend_name() != "sqlite":
            found.append((f"in the {place}", value))
    for number, (key, value) in enumerate(_query(url), 1):
        if key.casefold() not in HARMLESS:
            shown = f"`{key}`" if re.fullmatch(r"[A-Za-z_]\w{0,30}", key) else f"key {number}"
            found.append((f"{shown} of the query", value))
    return [(part, value) for part, value in found if value]
