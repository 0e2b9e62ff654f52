"""A tenth of the table in experiments/coverage: real architectures, compressed, exported and equal."""

from __future__ import annotations

import pytest

from experiments.coverage.architectures import architectures
from experiments.coverage.cells import CELLS, try_cell

pytest.importorskip("transformers", reason="the architectures are those of the package transformers")

SAMPLE = (
    "BertForSequenceClassification",
    "DistilBertForSequenceClassification",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "T5EncoderModel",
    "ViTForImageClassification",
    "ConvNextForImageClassification",
    "ResNetForImageClassification",
)


REFUSED = {("GPT2LMHeadModel", "half rank")}
"""Cells that have nothing to act on: GPT-2's own layers are no linear layers of torch."""


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
def test_real_architectures_are_compressed_and_equal_or_refused_with_a_reason(name: str, cell: str) -> None:
    outcome = try_cell(architectures()[name], cell)
    if (name, cell) in REFUSED:
        assert (outcome.status, outcome.reason) == ("refused", "InfeasiblePlan: low_rank finds nothing to act on")
        return
    assert outcome.status == "equal", outcome.reason
    assert outcome.layers
    if cell != "int8":
        assert outcome.parameters < 0.95
