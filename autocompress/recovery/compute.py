"""Where training runs: on the GPU that this process was given, or on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Array


@cache
def compute_device() -> torch.device:
    """The current GPU of CUDA if this process sees one, else the processor.

    Which GPUs a process sees is for whoever starts it to say, by `CUDA_VISIBLE_DEVICES`: empty, it trains on the
    processor.
    """
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def compute_name() -> str:
    """What training runs on, for people."""
    device = compute_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"


def autocast() -> AbstractContextManager[object]:
    """bf16 arithmetic where training runs on something that has it, which halves the time of a step."""
    device = compute_device().type
    return torch.autocast(device, torch.bfloat16) if _has_bfloat16(device) else nullcontext()


def tensors(arrays: tuple[Array, ...]) -> tuple[Tensor, ...]:
    """Arrays as tensors where training runs; on the processor they share the memory of contiguous ones."""
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(compute_device()) for array in arrays)


@contextmanager
def at_work(model: nn.Module) -> Iterator[None]:
    """A model where training runs, for a while.

    Everything else is done on the processor, where the model is again in the end. Its parameters stay the same objects,
    so that tied ones stay tied.
    """
    device = compute_device()
    if device.type == "cpu":
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
        torch.cuda.empty_cache()  # other workers may train on the same GPU


@cache
def _has_bfloat16(device: str) -> bool:
    """True on GPUs and processors with bf16 arithmetic (AVX-512 BF16 or AMX on x86, bf16 on ARM)."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    flags = set(cpuinfo.read_text().split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
