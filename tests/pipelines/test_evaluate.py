"""Scores against plain loops, and a whole evaluation of a model whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline.models.load import load_model
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import embed_rows, evaluate
from sightline.pipelines.evaluate.metrics import recall_at_k, topk_accuracy

SIMILARITY = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
OWNER = [0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 6, 6, 6]


def test_recall_is_the_plain_count() -> None:
    scores = recall_at_k(SIMILARITY, OWNER, (1, 3))
    for k in (1, 3):
        hits = [any(OWNER[c] == i for c in sorted(range(16), key=lambda c: -float(SIMILARITY[i, c]))[:k]) for i in range(7)]
        assert scores[f"image_to_text_recall@{k}"] == pytest.approx(np.mean(hits))
        hits = [OWNER[c] in sorted(range(7), key=lambda i: -float(SIMILARITY[i, c]))[:k] for c in range(16)]
        assert scores[f"text_to_image_recall@{k}"] == pytest.approx(np.mean(hits))


def test_topk_is_the_plain_count() -> None:
    target = torch.tensor([0, 3, 5, 2, 2, 9, 15])
    for k in (1, 4, 100):
        hits = [int(t) in sorted(range(16), key=lambda c: -float(row[c]))[:k] for row, t in zip(SIMILARITY, target, strict=True)]
        assert topk_accuracy(SIMILARITY, target, k) == pytest.approx(np.mean(hits))


def test_the_parts_of_an_evaluation_fit_together(digits: Corpus, artifact: object) -> None:
    model = load_model(str(artifact))
    report = evaluate(model, digits)
    test = digits.select("test")
    metrics = report.metrics
    assert report.split == "test" and report.corpus_root == digits.root and metrics["images"] == len(test)
    assert metrics["top1_seen_rows"] + metrics["top1_held_out_rows"] == metrics["top1_rows"] == 90
    correct = metrics["top1_seen"] * metrics["top1_seen_rows"] + metrics["top1_held_out"] * metrics["top1_held_out_rows"]
    assert correct / metrics["top1_rows"] == pytest.approx(metrics["top1"])
    assert metrics["top1_held_out_rows"] == 18  # twelve of sixty pairs, evenly among 90 scenes
    assert 0 <= metrics["foreground_iou"] <= 1

    # Retrieval once more, by the model's own embeddings and one big product.
    images = embed_rows(model, digits, test, lambda what, done, total: None)
    captions = [caption for row in test for caption in digits.captions(int(row))]
    owner = [i for i, row in enumerate(test) for _ in digits.captions(int(row))]
    want = recall_at_k(images @ model.embed_texts(captions).T, owner)
    assert {name: metrics[name] for name in want} == pytest.approx(want)


def test_an_unknown_split_is_refused(digits: Corpus, artifact: object) -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        evaluate(load_model(str(artifact)), digits, "dev")
