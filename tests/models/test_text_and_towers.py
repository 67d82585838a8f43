from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sightline.models.objectives import caption_ids, strangers, words_present
from sightline.models.text import OPEN_CLIP_BPE, BagOfWords, get_tokenizer
from sightline.models.towers import build
from sightline.models.zeroshot import fill
from tests.models.conftest import CONV, random_towers


def test_a_bag_of_words_is_the_mean_of_its_words() -> None:
    torch.manual_seed(0)
    tower, tokenizer = BagOfWords(width=8, output_dim=4, context_length=10), get_tokenizer(OPEN_CLIP_BPE, 10)
    tokens = tokenizer(["red three", "three red", "red", "three", ""])
    both, turned, red, three, nothing = tower(tokens)
    torch.testing.assert_close(both, turned)
    torch.testing.assert_close(both, (red + three) / 2)
    assert torch.equal(nothing, torch.zeros(4))


def test_unknown_tokenizers_and_towers_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown tokenizer"):
        get_tokenizer("no such", 10)
    with pytest.raises(ValueError, match="cannot be built"):
        build(replace(CONV, vision={"timm_model_name": "no_such_model", "image_size": 32}))
    with pytest.raises(ValueError, match="cannot be built"):
        build(replace(CONV, vision={"no_such_key": 1}))


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (random_towers(CONV, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["text.token_embedding.weight"], other["text.token_embedding.weight"])


def test_prompts_go_label_by_label() -> None:
    assert fill(["cat", "dog"], ["a {}", "the {}."]) == ["a cat", "the cat.", "a dog", "the dog."]
    for labels, templates in (([], ["{}"]), (["  "], ["{}"]), (["cat"], ["a photo"]), (["cat"], [])):
        with pytest.raises(ValueError, match=r"label|template"):
            fill(labels, templates)


def test_words_are_found_whole_and_equal_captions_have_equal_ids() -> None:
    captions = ["a Red three", "reddish, three", "a red three"]
    assert words_present(captions, ["red", "three"]).tolist() == [[True, True], [False, True], [True, True]]
    ids = caption_ids(get_tokenizer(OPEN_CLIP_BPE, 8)(captions)).tolist()
    assert ids[0] == ids[2] != ids[1]


def test_strangers_are_words_that_never_stand_together() -> None:
    groups = (("red", "blue"), ("one", "two", "six"))
    found = strangers(["a red one", "blue two and red two", "one red thing"], groups)
    words = ["red", "blue", "one", "two", "six"]
    pairs = {frozenset((words[i], words[j])) for i, j in found.nonzero().tolist()}
    assert pairs == {frozenset(p) for p in (("red", "six"), ("blue", "one"), ("blue", "six"))}
