"""Trials of an Optuna study as a storage holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial


def update_trial(storage: BaseStorage, identity: int, before: FrozenTrial, now: FrozenTrial) -> None:
    """Write what has changed of a trial.

    Args:
        storage: What holds it.
        identity: Its id there.
        before: As it is there.
        now: As it is to be; it has what it had before.
    """
    for name in now.params.keys() - before.params.keys():
        distribution = now.distributions[name]
        storage.set_trial_param(identity, name, distribution.to_internal_repr(now.params[name]), distribution)
    for key, value in _changes(before.user_attrs, now.user_attrs).items():
        storage.set_trial_user_attr(identity, key, value)
    for key, value in _changes(before.system_attrs, now.system_attrs).items():
        storage.set_trial_system_attr(identity, key, value)
    if now.state != before.state:  # last, as a trial that has ended can't be changed
        storage.set_trial_state_values(identity, now.state, now.values)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in now.items() if key not in before or before[key] != value}
