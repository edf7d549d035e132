"""What a token sees, as one span of columns: the mask's own, or nothing."""

from __future__ import annotations

import pytest
import torch

from etymon import spec
from etymon.nn.layout import Layout

CPU = torch.device("cpu")
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2]])
PADDED = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("visibility", [spec.Causal(), spec.Bidirectional()])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("given", [{}, {"documents": DOCUMENTS}])
def test_a_span_is_what_the_mask_shows(visibility: spec.Visibility, window: int | None, given: dict) -> None:
    layout = Layout((2, 8), CPU, **given)
    spans = layout.spans(visibility, window)
    assert spans is not None
    first, last = spans
    columns = torch.arange(8)
    found = (columns >= first[:, :, None]) & (columns <= last[:, :, None])
    assert torch.equal(found.expand(2, 8, 8), layout.mask(visibility, window)[:, 0].expand(2, 8, 8))


@pytest.mark.parametrize("given", [{}, {"documents": DOCUMENTS}])
def test_a_prefix_that_sees_itself_leaves_a_span(given: dict) -> None:
    """So that the kernel over whole sequences trains such models too: from the first to what is seen last."""
    layout = Layout((2, 8), CPU, **given)
    prefix = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0, 1]] if given else [[1] * 5 + [0] * 3] * 2)
    layout.show(prefix, True)
    spans = layout.spans(spec.Prefix(), None)
    assert spans is not None
    documents = given.get("documents", torch.zeros(2, 8))
    for row in range(2):
        for i in range(8):
            same = [j for j in range(8) if documents[row, i] == documents[row, j]]
            seen = [j for j in same if j <= i or prefix[row, j]]
            assert (spans[0].expand(2, 8)[row, i], spans[1].expand(2, 8)[row, i]) == (seen[0], seen[-1])
            assert len(seen) == seen[-1] - seen[0] + 1


def test_what_is_padded_is_seen_by_none_who_reads_both_ways() -> None:
    first, last = Layout((2, 8), CPU, attention_mask=PADDED).spans(spec.Bidirectional(), None) or (None, None)
    assert first is not None and last is not None
    assert torch.equal(first, torch.zeros(2, 8).int()) and torch.equal(last[:, 0], torch.tensor([4, 7]).int())


def test_what_has_a_gap_or_a_bias_is_no_span() -> None:
    # to the left, a padded token sees the text and itself with a gap between
    assert Layout((2, 8), CPU, attention_mask=PADDED).spans(spec.Causal(), None) is None
    seen = torch.ones(2, 8, 8).tril()
    assert Layout((2, 8), CPU, attention_mask=seen).spans(spec.Causal(), None) is not None
    seen[0, 6, 2] = 0
    assert Layout((2, 8), CPU, attention_mask=seen).spans(spec.Causal(), None) is None
    biased = Layout((2, 8), CPU)
    biased.bias = torch.zeros(1, 1, 8, 8)
    assert biased.spans(spec.Causal(), None) is None
