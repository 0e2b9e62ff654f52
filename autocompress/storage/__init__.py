"""The study of a search in a database, where optuna-dashboard finds it from elsewhere."""

from autocompress.storage.copying import StudyCopy, own_name, write_study
from autocompress.storage.database import Database

__all__ = ["Database", "StudyCopy", "own_name", "write_study"]
