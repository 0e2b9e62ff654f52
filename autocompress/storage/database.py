"""A database for studies: its URL, what nobody may see of it, and what is refused before a search begins."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from autocompress.errors import InvalidInput, one_line

EXPECTED = "expected a URL such as sqlite:///study.db or postgresql://user@host/database"

SQLITE = "sqlite"

PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages of drivers by the module that they hold, where the names differ."""

_SECRET = re.compile("passw|pwd|secret|token|odbc_connect", re.IGNORECASE)
"""Keys behind the `?` of a URL whose values nobody may see; `odbc_connect` holds all that there is to a connection."""

_LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Seconds, and milliseconds for the last, after which a server that does not answer counts as gone."""

_OPTIONS: Mapping[str, Mapping[str, int]] = {
    "pysqlite": {"timeout": 60},
    "psycopg": _LIBPQ,
    "psycopg2": _LIBPQ,
}
"""What drivers are told besides the URL; SQLite's seconds are those to wait while another process writes."""


@dataclass(frozen=True)
class Database:
    """Where studies are kept; as text the URL without its secrets.

    Args:
        url: With an absolute path where it is that of a file.
    """

    url: URL = field(repr=False)

    @classmethod
    def of(cls, text: str) -> Database:
        """The database of a URL, which is not looked for yet.

        Raises:
            InvalidInput: If it is no URL of a database, or the driver is missing.
        """
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):  # with the whole URL or a part of its password in their text
            raise InvalidInput(f"storage {_outline(text)}: {EXPECTED}") from None
        if url.host and text.count("@") > 1:
            raise InvalidInput(f"storage {_outline(text)}: more than one @; write %40 for those of a password")
        database = cls(_placed(url))
        try:
            url.get_dialect().import_dbapi()
        except NoSuchModuleError as error:
            raise InvalidInput(f"storage {database}: no database is called {url.drivername!r}; {EXPECTED}") from error
        except ImportError as error:
            module = error.name or url.get_driver_name()
            raise InvalidInput(
                f"storage {database}: the driver {module} is missing; pip install {PACKAGES.get(module, module)}, or "
                f"name another one as in {url.get_backend_name()}+DRIVER://"
            ) from error
        return database

    def __str__(self) -> str:
        url = self.url
        query = {key: value for key, value in url.query.items() if not _SECRET.search(key)}
        shown = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query)
        return shown.render_as_string(hide_password=False)

    @property
    def file(self) -> Path | None:
        """The file of SQLite."""
        is_file = self.url.get_backend_name() == SQLITE and not str(self.url.database).startswith("file:")
        return Path(str(self.url.database)) if is_file else None

    @property
    def is_there(self) -> bool:
        """False where the file is not made yet."""
        return self.file is None or self.file.exists()

    def reason(self, error: BaseException) -> str:
        """Why something failed, in a line without secrets: what the driver says, where it is behind it."""
        while getattr(error, "orig", None) is None and error.__cause__ is not None:
            error = error.__cause__
        text = one_line(getattr(error, "orig", None) or error)
        for secret in self._secrets():
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return text

    def _secrets(self) -> Iterator[str]:
        if self.url.password:
            yield str(self.url.password)
        for key, value in self.url.query.items():
            if _SECRET.search(key):
                yield from (value,) if isinstance(value, str) else value

    @contextmanager
    def opened(self) -> Iterator[RDBStorage]:
        """Optuna's storage there, with its tables."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        options = _OPTIONS.get(self.url.get_driver_name(), {})
        unset = {key: value for key, value in options.items() if key not in self.url.query}
        text = self.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # a template
        storage = _patiently(lambda: RDBStorage(text, engine_kwargs={"pool_pre_ping": True, "connect_args": unset}))
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()

    def require_usable(self, *, resumed: bool = False) -> None:
        """Write and delete a study; a file that is not there is left to be made by the search.

        Args:
            resumed: True if the search has begun before, perhaps with a password that was not kept.

        Raises:
            InvalidInput: If that can't be done; the message says why.
        """
        file = self.file
        if file is not None and not self.is_there:
            if not os.access(file.parent, os.W_OK):
                raise InvalidInput(f"storage {self}: the folder {file.parent} is missing or can't be written; make it")
            return
        try:
            with self.opened() as storage:
                name = f"autocompress-{secrets.token_hex(8)}"
                storage.delete_study(storage.create_new_study([StudyDirection.MINIMIZE], name))
        except Exception as error:
            raise InvalidInput(
                f"storage {self}: can't be used: {self.reason(error)}; {self._next_step(resumed)}"
            ) from None  # what is behind it may hold the password

    def _next_step(self, resumed: bool) -> str:
        if not resumed:
            return "start the database, or mend the URL or your rights there"
        if self.file is None and not any(self._secrets()):
            return (
                "run.json keeps no password: give the URL again by --storage, or the password by PGPASSWORD or "
                "~/.pgpass; --storage journal goes on without a database"
            )
        return "start the database, or give another by --storage; --storage journal goes on without one"


def _patiently(connect: Callable[[], RDBStorage]) -> RDBStorage:
    """Connect, a second time where another process made the tables at the same moment."""
    try:
        return connect()
    except Exception as error:
        if "already exists" not in str(error):
            raise
        time.sleep(1.0)
        return connect()


def _outline(text: str) -> str:
    """Of a text that may hold a password no more than its beginning."""
    scheme, found, _ = text.partition("://")
    return repr(f"{scheme}://…") if found else "'…'" if "@" in text else repr(text)


def _placed(url: URL) -> URL:
    """The URL with an absolute path to its file, if it is that of one.

    Raises:
        InvalidInput: If it is in memory, where no other process finds it.
    """
    if url.get_backend_name() != SQLITE or str(url.database).startswith("file:"):
        return url
    if url.database in (None, "", ":memory:"):
        raise InvalidInput(f"storage {url}: in memory, where nobody else finds it; expected a file: sqlite:///study.db")
    return url.set(database=str(Path(str(url.database)).expanduser().absolute()))
