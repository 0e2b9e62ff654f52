from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from autocompress.errors import TeamBroken
from autocompress.exchange import exchanging

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:26549"


@pytest.mark.parametrize("error", [RuntimeError(CLOSED), dist.DistNetworkError("lost"), dist.DistStoreError("late")])
def test_who_has_lost_others_says_so(error: RuntimeError) -> None:
    with pytest.raises(TeamBroken, match="cut short: ") as caught, exchanging():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes"), ValueError()])
def test_what_fails_by_itself_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, exchanging():
        raise error
    assert caught.value is error
