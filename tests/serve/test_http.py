"""The endpoints over HTTP, without Ray, with a real tiny model: answers, and every way to ask wrongly."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from sightline.models.clip import Clip
from sightline.models.segment import COMMON_STUFF
from sightline.serve import masks
from sightline.serve.guard import SHORT
from sightline.serve.http import prefers_png
from tests.serve.conftest import LIMITS, SIZE, encoded, picture

LABELS = ["a cat", "a dog", "a very small submarine"]


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def detail(response: Any, status: int) -> str:
    """The detail of a problem document, after checking that the response is one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    return str(problem["detail"])


# -------------------------------------------------------------------------------------------- answers


def test_classify_equals_plain_open_clip(client: TestClient, model_folder: Path) -> None:
    image = picture(SIZE, SIZE)  # at the tower's own size: resampling is not what is compared
    towers, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
    towers.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{model_folder}")([f"a photo of a {label}." for label in LABELS])
    with torch.inference_mode():
        seen = towers.encode_image(transform(image)[None], normalize=True)
        said = towers.encode_text(tokens, normalize=True)
        logits = (towers.logit_scale.exp() * seen @ said.T)[0]
    templates = {"templates": ["a photo of a {}."]}
    answer = client.post("/v1/classify", json={"image": data_url(encoded(image)), "labels": LABELS} | templates).json()
    got = {prediction["label"]: prediction for prediction in answer["results"][0]["predictions"]}
    for label, logit, score in zip(LABELS, logits.tolist(), logits.softmax(-1).tolist(), strict=True):
        assert got[label]["logit"] == pytest.approx(logit, abs=1e-4)
        assert got[label]["score"] == pytest.approx(score, abs=1e-5)


def test_a_short_path_is_the_long_one(client: TestClient, png: bytes) -> None:
    for short, long in SHORT.items():
        fields = {"input": ["a cat"]} if short == "/embed" else {"image": data_url(png), "labels": LABELS}
        answers = [client.post(path, json=fields) for path in (short, long)]
        assert answers[0].status_code == 200 and answers[0].content == answers[1].content
    assert not SHORT.keys() & client.get("/openapi.json").json()["paths"].keys()


def test_probabilities_sum_to_one_and_come_in_order(client: TestClient, png: bytes) -> None:
    predictions = client.post("/v1/classify", files={"image": png}, data={"labels": LABELS}).json()["results"][0]["predictions"]
    scores = [prediction["score"] for prediction in predictions]
    assert sum(scores) == pytest.approx(1, abs=1e-6)
    assert scores == sorted(scores, reverse=True)
    assert {prediction["label"] for prediction in predictions} == set(LABELS)


def test_top_k_cuts_after_the_softmax(client: TestClient, png: bytes) -> None:
    every = client.post("/v1/classify", files={"image": png}, data={"labels": LABELS}).json()["results"][0]["predictions"]
    best = client.post("/v1/classify", files={"image": png}, data={"labels": LABELS, "top_k": 2}).json()["results"][0][
        "predictions"
    ]
    assert best == every[:2]


@pytest.mark.parametrize(
    "labels",
    [LABELS, ", ".join(LABELS), "\n".join(LABELS), "\r\n".join([*LABELS, ""]), [LABELS[0], ",".join(LABELS[1:])]],
    ids=["repeated", "commas", "lines", "crlf", "both"],
)
def test_every_way_to_ask_gives_the_same_answer(client: TestClient, png: bytes, labels: Any) -> None:
    want = client.post("/v1/classify", json={"image": data_url(png), "labels": LABELS})
    assert want.status_code == 200, want.text
    got = client.post("/v1/classify", files={"image": ("photo.png", png)}, data={"labels": labels})
    assert got.json() == want.json()


def test_base64_with_line_ends_is_an_image_too(client: TestClient, png: bytes) -> None:
    wrapped = base64.encodebytes(png).decode()
    assert client.post("/v1/classify", json={"image": wrapped, "labels": LABELS}).status_code == 200


def test_answers_name_the_model_and_its_weights(client: TestClient, model: Clip, png: bytes) -> None:
    asked = {"image": data_url(png), "labels": LABELS}
    for path, body in (("/v1/classify", asked), ("/v1/segment", asked), ("/v1/embeddings", {"input": LABELS})):
        answer = client.post(path, json=body).json()
        assert (answer["model"], answer["revision"], answer["artifact"]) == ("tiny-clip", model.revision, model.revision)


def test_a_label_in_a_json_list_may_hold_a_comma(client: TestClient, png: bytes) -> None:
    labels = ["salt, pepper", "чайник", "茶壶 🫖"]
    predictions = client.post("/v1/classify", json={"image": data_url(png), "labels": labels}).json()["results"][0]["predictions"]
    assert {prediction["label"] for prediction in predictions} == set(labels)


def test_a_mask_is_a_palette_png_of_the_images_own_size(client: TestClient, png: bytes) -> None:
    [answer] = client.post("/v1/segment", files={"image": png}, data={"labels": LABELS}).json()["results"]
    mask = Image.open(io.BytesIO(base64.b64decode(answer["mask"])))
    assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (80, 60))
    assert (answer["width"], answer["height"]) == (80, 60)
    index = np.asarray(mask)
    rgb = np.asarray(mask.convert("RGB"))
    for i, area in enumerate(answer["labels"]):
        assert area["label"] == LABELS[i]
        assert area["pixels"] == int((index == i + 1).sum())
        assert area["fraction"] == pytest.approx(area["pixels"] / (80 * 60))
        assert {"#" + bytes(pixel).hex() for pixel in rgb[index == i + 1]} <= {area["colour"]}
    assert sum(area["pixels"] for area in answer["labels"]) > 0


def test_the_mask_alone_where_png_is_preferred(client: TestClient, model: Clip, png: bytes) -> None:
    asked: dict[str, Any] = {"files": {"image": png}, "data": {"labels": LABELS}}
    answer = client.post("/v1/segment", headers={"Accept": "image/png"}, **asked)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["sightline-revision"] == model.revision
    assert answer.content == base64.b64decode(client.post("/v1/segment", **asked).json()["results"][0]["mask"])


@pytest.mark.parametrize(
    ("accept", "png"),
    [
        ("image/png", True),
        ("*/*", False),
        ("", False),
        ("application/json, image/png", False),
        ("application/json;q=0.5, image/png;q=0.9", True),
        ("IMAGE/PNG; q=1.0, */*;q=0.1", True),
        ("image/png;q=nonsense", False),
    ],
)
def test_the_accept_header_decides(accept: str, png: bool) -> None:
    assert prefers_png(accept) is png


def embeddings(client: TestClient, inputs: Any, **fields: Any) -> Any:
    response = client.post("/v1/embeddings", json={"input": inputs} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_embeddings_have_unit_norm_and_agree_with_classify(client: TestClient, model: Clip, png: bytes) -> None:
    prompts = [template.replace("{}", "a cat") for template in model.templates]
    answer = embeddings(client, [data_url(png), *prompts, data_url(encoded(picture(seed=1)))])
    assert [entry["index"] for entry in answer["data"]] == list(range(len(prompts) + 2))
    vectors = np.array([entry["embedding"] for entry in answer["data"]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    texts = vectors[1:-1]
    label = texts.mean(0) / np.linalg.norm(texts.mean(0))
    (prediction,) = client.post("/v1/classify", json={"image": data_url(png), "labels": ["a cat"]}).json()["results"][0][
        "predictions"
    ]
    assert prediction["logit"] == pytest.approx(model.logit_scale * float(vectors[0] @ label), abs=1e-4)


def test_embeddings_have_openais_shape(client: TestClient, png: bytes) -> None:
    one = embeddings(client, "a cat", model="tiny-clip", encoding_format="float", user="me", dimensions=32)
    assert (one["object"], one["data"][0]["object"], len(one["data"])) == ("list", "embedding", 1)
    assert one["usage"] == {"prompt_tokens": 4, "total_tokens": 4, "images": 0}  # start, a, cat, end
    packed = embeddings(client, ["a cat", data_url(png)], encoding_format="base64")
    assert packed["usage"]["images"] == 1
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, one["data"][0]["embedding"], atol=1e-6)


def test_health_and_readiness(client: TestClient, model: Clip) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert (ready["status"], ready["model"], ready["revision"]) == ("ready", "tiny-clip", model.revision)


def test_the_served_models_are_listed_with_what_they_are(client: TestClient, model: Clip) -> None:
    [listed] = client.get("/v1/models").json()["data"]
    assert (listed["id"], listed["object"], listed["share"], listed["dimension"]) == ("tiny-clip", "model", 1.0, 32)
    assert (listed["image_size"], listed["precision"], listed["provenance"]) == (SIZE, "float32", None)
    assert listed["templates"] == list(model.templates)


def test_a_request_may_name_the_model(client: TestClient, model: Clip) -> None:
    assert embeddings(client, "a cat", model=model.revision[:12])["model"] == "tiny-clip"
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/v1/classify", {"image": "", "labels": "a"})):
        assert "GET /v1/models lists them" in detail(client.post(path, json=body | {"model": "gpt"}), 404)


def test_several_images_are_answered_in_order_and_a_bad_one_fails_alone(client: TestClient, png: bytes) -> None:
    other = encoded(picture(seed=1))
    asked: dict[str, Any] = {"data": {"labels": LABELS}}
    single = [client.post("/v1/classify", files={"image": data}, **asked).json()["results"][0] for data in (png, other)]
    several = client.post("/v1/classify", files=[("images", data) for data in (png, b"junk", other)], **asked)
    first, bad, last = several.json()["results"]
    for got, want in zip((first, last), single, strict=True):
        assert [one["logit"] for one in got["predictions"]] == pytest.approx(
            [one["logit"] for one in want["predictions"]], abs=1e-4
        )
    assert bad["error"]["status"] == 400 and bad["error"]["detail"].startswith("images.1:")
    masks = client.post("/v1/segment", files=[("images", data) for data in (b"", png)], **asked).json()["results"]
    assert masks[0]["error"]["status"] == 400 and masks[1]["width"] == 80
    vectors = embeddings(client, ["a cat", "data:image/png;base64,AAAA"])["data"]
    assert vectors[0]["error"] is None and vectors[1]["embedding"] is None
    assert vectors[1]["error"]["detail"].startswith("input.1:")


def test_run_lengths_are_cocos(client: TestClient, png: bytes) -> None:
    asked: dict[str, Any] = {"files": {"image": png}, "data": {"labels": LABELS, "format": "rle"}}
    [answer] = client.post("/v1/segment", **asked).json()["results"]
    [with_mask] = client.post("/v1/segment", files={"image": png}, data={"labels": LABELS}).json()["results"]
    index = np.asarray(Image.open(io.BytesIO(base64.b64decode(with_mask["mask"]))))
    assert answer["mask"] is None
    for i, area in enumerate(answer["labels"]):
        assert area["rle"]["size"] == [60, 80]
        np.testing.assert_array_equal(from_coco(area["rle"]), index == i + 1)


def test_score_maps_are_highest_where_the_label_is(client: TestClient, png: bytes) -> None:
    asked: dict[str, Any] = {"files": {"image": png}, "data": {"labels": LABELS, "format": "scores"}}
    [answer] = client.post("/v1/segment", **asked).json()["results"]
    [with_mask] = client.post("/v1/segment", files={"image": png}, data={"labels": LABELS}).json()["results"]
    index = np.asarray(Image.open(io.BytesIO(base64.b64decode(with_mask["mask"]))))
    scores_LHW = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(area["scores"])))) for area in answer["labels"]])
    assert scores_LHW.shape == (3, 60, 80) and scores_LHW.max() == 255
    shown = index > 0
    assert shown.any()
    np.testing.assert_array_equal(np.take_along_axis(scores_LHW, index[None].clip(1) - 1, 0)[0][shown], scores_LHW.max(0)[shown])


# ------------------------------------------------------------------------------------------ label sets


def test_a_label_set_is_registered_once_and_used_by_name(client: TestClient, png: bytes) -> None:
    body = {"labels": LABELS, "templates": ["a {}"]}
    assert client.put("/v1/labels/pets", json=body).status_code == 201
    assert client.put("/v1/labels/pets", json=body).status_code == 200
    assert client.get("/v1/labels/pets").json() == {"name": "pets"} | body
    assert client.get("/v1/labels").json() == {"label_sets": ["pets"]}
    image = {"image": data_url(png)}
    assert (
        client.post("/v1/classify", json=image | {"label_set": "pets"}).json()
        == client.post("/v1/classify", json=image | body).json()
    )
    assert client.post("/v1/segment", json=image | {"label_set": "pets"}).status_code == 200
    assert 'label_set="pets"' in client.get("/metrics").text
    assert client.delete("/v1/labels/pets").status_code == 204
    assert "PUT /v1/labels/NAME" in detail(client.delete("/v1/labels/pets"), 404)
    assert "GET /v1/labels lists" in detail(client.post("/v1/classify", json=image | {"label_set": "pets"}), 404)


def test_bad_label_sets(client: TestClient, png: bytes) -> None:
    assert "letters, digits" in detail(client.put("/v1/labels/%20", json={"labels": "a"}), 422)
    assert "give every label once" in detail(client.put("/v1/labels/x", json={"labels": ["a", "a"]}), 422)
    both = {"image": data_url(png), "labels": "a", "label_set": "x"}
    assert "not both" in detail(client.post("/v1/classify", json=both), 422)


# --------------------------------------------------------------------------------------------- unknown


def test_an_image_is_unknown_where_something_else_fits_better(client: TestClient, model: Clip, png: bytes) -> None:
    ranked = client.post("/v1/classify", json={"image": data_url(png), "labels": list(COMMON_STUFF)}).json()["results"][0][
        "predictions"
    ]
    best, worst = ranked[0]["label"], ranked[-1]["label"]
    for label, unknown in ((best, False), (worst, True)):
        asked = {"image": data_url(png), "labels": [label], "unknown": True}
        [answer] = client.post("/v1/classify", json=asked).json()["results"]
        assert answer["unknown"] is unknown
        assert (answer["known"]["score"] < answer["known"]["threshold"]) is unknown
        assert answer["known"]["rule"] == "logit"


def test_labels_that_leave_nothing_to_compare_with(client: TestClient, png: bytes) -> None:
    asked = {"image": data_url(png), "labels": list(COMMON_STUFF), "unknown": True}
    assert "give a threshold" in detail(client.post("/v1/classify", json=asked), 422)
    assert client.post("/v1/classify", json=asked | {"threshold": 0}).status_code == 200


def test_a_line_is_an_image_like_another(client: TestClient) -> None:
    for size in ((200_000, 1), (1, 200_000)):
        body = encoded(picture(*size))
        assert client.post("/v1/classify", files={"image": body}, data={"labels": "a,b"}).status_code == 200


@pytest.mark.parametrize("rule", ["logit", "probability", "energy"])
def test_a_threshold_decides_by_the_rule(client: TestClient, png: bytes, rule: str) -> None:
    asked = {"image": data_url(png), "labels": LABELS, "rule": rule}
    [answer] = client.post("/v1/classify", json=asked | {"threshold": 0}).json()["results"]
    score = answer["known"]["score"]
    for threshold, unknown in ((score - 0.01, False), (score + 0.01, True)):
        [answer] = client.post("/v1/classify", json=asked | {"threshold": threshold}).json()["results"]
        assert answer["unknown"] is unknown
    [plain] = client.post("/v1/classify", json={"image": data_url(png), "labels": LABELS}).json()["results"]
    assert plain["unknown"] is None and plain["known"] is None


def test_a_rule_that_cannot_decide_says_so(client: TestClient, png: bytes) -> None:
    asked = {"image": data_url(png), "labels": "a cat"}
    assert "needs a threshold" in detail(client.post("/v1/classify", json=asked | {"unknown": True, "rule": "energy"}), 422)
    said = detail(client.post("/v1/classify", json=asked | {"threshold": 0.5, "rule": "probability"}), 422)
    assert "two labels or more" in said


def test_the_page_asks_nothing_of_others(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert set(re.findall(r"https?://[^'\"\s]+", page.text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert client.get("/example.jpg").content.startswith(b"\xff\xd8")


def test_the_examples_of_the_documentation_run(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/classify", "/v1/segment", "/v1/embeddings"):
        content = paths[path]["post"]["requestBody"]["content"]
        answer = client.post(path, json=content["application/json"]["example"])
        assert answer.status_code == 200, answer.text
    assert client.get("/docs").status_code == 200


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/segment"])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"labels": []}, "give at least one label"),
        ({"labels": " , \n"}, "give at least one label"),
        ({"labels": ["cat", " "]}, "a label is empty"),
        ({"labels": ["cat", "dog", "cat"]}, "give every label once"),
        ({"labels": [f"label {i}" for i in range(LIMITS.max_labels + 1)]}, "one request takes 20"),
        ({"labels": ["x" * 201]}, "at most 200 characters"),
        ({"labels": [1, 2]}, "labels.0"),
        ({"labels": {"cat": 1}}, "labels"),
        ({"labels": "cat", "colour": "red"}, "colour: there is no such field"),
        ({}, "labels: this field is missing"),
        ({"labels": "cat", "image": "not base64!"}, "-F image=@photo.jpg"),
        ({"labels": "cat", "image": 7}, "image"),
        ({"labels": "cat", "image": None}, "image"),
    ],
)
def test_bad_fields_are_named_with_their_remedy(
    client: TestClient, png: bytes, path: str, fields: dict[str, Any], says: str
) -> None:
    assert says in detail(client.post(path, json={"image": data_url(png)} | fields), 422)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"templates": ["a photo"]}, "needs {} where the label goes"),
        ({"templates": []}, "needs {} where the label goes"),
        ({"templates": ["{}" + str(i) for i in range(41)]}, "41; one request takes 40 prompts"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": "many"}, "top_k"),
    ],
)
def test_bad_options_of_classify(client: TestClient, png: bytes, fields: dict[str, Any], says: str) -> None:
    assert says in detail(client.post("/v1/classify", json={"image": data_url(png), "labels": "cat"} | fields), 422)


def test_a_form_without_a_file_or_without_labels(client: TestClient, png: bytes) -> None:
    assert "image: this field is missing" in detail(client.post("/v1/classify", files={"labels": (None, "cat")}), 422)
    assert "labels: this field is missing" in detail(client.post("/v1/classify", files={"image": png}), 422)
    assert "give it once" in detail(client.post("/v1/segment", files=[("top_k", (None, "1")), ("top_k", (None, "2"))]), 422)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "input: give a text"),
        ({"input": []}, "nothing to embed"),
        ({"input": " "}, "a text is empty"),
        ({"input": [1, 2]}, "token ids are not taken"),
        ({"input": [[1], [2]]}, "token ids are not taken"),
        ({"input": ["a"] * 257}, "257 texts are too many"),
        ({"input": "x" * 2_001}, "at most 2000 characters"),
        ({"input": ["data:image/png;base64,"] * 7}, "7 images are too many"),
        ({"input": "data:image/png;base64,$"}, "must be base64"),
        ({"input": "a", "dimensions": 7}, "have 32"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_bad_inputs_for_embeddings(client: TestClient, fields: dict[str, Any], says: str) -> None:
    assert says in detail(client.post("/v1/embeddings", json=fields), 422)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/segment"])
@pytest.mark.parametrize(
    "data", [b"", b"x", b"<html>404</html>", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=range(5)
)
def test_a_file_that_is_no_image_is_400(client: TestClient, path: str, data: bytes) -> None:
    assert "send a whole JPEG, PNG" in detail(client.post(path, files={"image": data}, data={"labels": "cat"}), 400)


def test_a_truncated_image_is_400(client: TestClient, png: bytes) -> None:
    detail(client.post("/v1/classify", files={"image": png[: len(png) // 2]}, data={"labels": "cat"}), 400)


def test_too_many_images_and_maps(client: TestClient, png: bytes) -> None:
    files = [("images", png)] * 6
    assert client.post("/v1/classify", files=[*files, ("images", png)], data={"labels": "a"}).status_code in (400, 422)
    assert "12; one request takes 8" in detail(
        client.post("/v1/segment", files=files, data={"labels": "a,b", "format": "scores"}), 422
    )
    client.put("/v1/labels/two", json={"labels": "a,b"})
    several = {"images": [data_url(png)] * 6, "label_set": "two"}
    assert "12; one request takes 8" in detail(client.post("/v1/segment", json=several | {"format": "scores"}), 422)
    client.put("/v1/labels/names", json={"labels": ["|".join("abcdefghijklmnopqrstuvw"), "|".join("ABCDEFGHIJKLMNOPQRSTUVW")]})
    for labels in ({"label_set": "names"}, {"labels": ["|".join("abcdefghijklmnopqrstuvw"), "|".join("ABCDEFGHIJKLMNOPQRSTUVW")]}):
        assert "46 names between them; one request takes 40" in detail(
            client.post("/v1/segment", json={"image": data_url(png)} | labels), 422
        )
    alone = {"Accept": "image/png"}
    assert "of one image" in detail(client.post("/v1/segment", files=files, data={"labels": "a"}, headers=alone), 422)


def test_images_by_url_are_off(client: TestClient) -> None:
    said = detail(client.post("/v1/classify", json={"image": "http://127.0.0.1/x.png", "labels": "a"}), 422)
    assert "fetches no images" in said and "127.0.0.1" not in said


def test_too_many_pixels_are_413_by_the_header_alone(client: TestClient) -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < LIMITS.max_image_bytes
    assert "pixels" in detail(client.post("/v1/classify", files={"image": bomb}, data={"labels": "cat"}), 413)


def test_too_large_an_image_is_413(client: TestClient) -> None:
    noise = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)))
    assert LIMITS.max_image_bytes < len(noise) < LIMITS.max_body_bytes
    assert "200,000" in detail(client.post("/v1/classify", files={"image": noise}, data={"labels": "cat"}), 413)


def test_a_body_that_says_it_is_too_large_is_413(client: TestClient) -> None:
    assert "400,000" in detail(client.post("/v1/classify", files={"image": bytes(500_000)}, data={"labels": "cat"}), 413)
    assert "400,000" in detail(client.post("/v1/embeddings", json={"input": "x" * 500_000}), 413)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_chunked_body_is_counted_while_it_arrives(client: TestClient, kind: str) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while sent < 10 * LIMITS.max_body_bytes:
            sent += 50_000
            yield bytes(50_000)

    assert "400,000" in detail(client.post("/v1/classify", content=endless(), headers={"Content-Type": kind}), 413)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"labels": ["\\ud800"], "image": ""}', 400),
        (b"[" * 100_000, 400),
        (b'{"top_k": NaN}', 400),
        (b"[1, 2]", 422),
        (b'"cat"', 422),
    ],
)
def test_malformed_json(client: TestClient, body: bytes, status: int) -> None:
    detail(client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"}), status)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"nonsense", "multipart/form-data"),
        (b"nonsense", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x"),
    ],
)
def test_a_malformed_form_is_no_failure_of_ours(client: TestClient, body: bytes, kind: str) -> None:
    response = client.post("/v1/classify", content=body, headers={"Content-Type": kind})
    assert response.status_code in (400, 422)
    detail(response, response.status_code)


@pytest.mark.parametrize("kind", ["", "text/plain", "image/png", "application/x-www-form-urlencoded"])
def test_another_content_type_is_415(client: TestClient, png: bytes, kind: str) -> None:
    assert "multipart/form-data" in detail(client.post("/v1/classify", content=png, headers={"Content-Type": kind}), 415)


def test_unknown_paths_and_methods_are_problems_too(client: TestClient) -> None:
    assert "/nowhere" in detail(client.get("/nowhere"), 404)
    assert "/v1/classify does not answer GET" in detail(client.get("/v1/classify"), 405)


def test_a_failure_of_ours_is_a_problem_without_secrets(client: TestClient, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("sightline.serve.engine.Engine.embed_images", broken)
    answer = client.post("/v1/classify", files={"image": png}, data={"labels": "cat"}, headers={"X-Request-Id": "mine"})
    assert "secret" not in detail(answer, 500) and answer.headers["x-request-id"] == "mine"


def test_a_model_that_cannot_be_read_densely_says_so(client: TestClient, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("the image tower Swin cannot be read densely")

    monkeypatch.setattr("sightline.serve.engine.segment", refuse)
    assert "Swin" in detail(client.post("/v1/segment", files={"image": png}, data={"labels": "cat"}), 422)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_files_cost_a_4xx_at_most(client: TestClient, shared_data: Path) -> None:
    for path in sorted((shared_data / "hostile").iterdir()):
        data = path.read_bytes()
        if len(data) > LIMITS.max_image_bytes:
            continue
        response = client.post("/v1/classify", files={"image": data}, data={"labels": "cat, dog"})
        assert response.status_code in (200, 400, 413), (path.name, response.text)
        json.loads(response.text)


# ------------------------------------------------------------------------------------------------ masks


def from_coco(rle: dict[str, Any]) -> np.ndarray:
    """Decode a compressed mask, by the letter of cocoapi's `rleFrString` and `rleDecode`."""
    lengths: list[int] = []
    characters = iter(rle["counts"].encode())
    for first in characters:
        value, shift, digit = 0, 0, first - 48
        while True:
            value |= (digit & 31) << shift
            shift += 5
            if not digit & 32:
                break
            digit = next(characters) - 48
        if digit & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    pixels = np.concatenate([np.full(length, i % 2 == 1) for i, length in enumerate(lengths)])
    return pixels.reshape(rle["size"], order="F")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_survive_their_compression(share: float) -> None:
    mask_HW = np.random.default_rng(0).random((211, 97)) < share
    counts = masks.coco_counts(masks.run_lengths(mask_HW))
    np.testing.assert_array_equal(from_coco({"size": [211, 97], "counts": counts}), mask_HW)


def test_every_label_has_a_colour_of_its_own() -> None:
    assert len({masks.colour(i) for i in range(255)}) == 255


def test_a_mask_survives_its_encoding() -> None:
    label_map_HW = np.random.default_rng(0).integers(0, 256, (17, 23), dtype=np.uint8)
    image = Image.open(io.BytesIO(masks.encode(label_map_HW, 255)))
    np.testing.assert_array_equal(np.asarray(image), label_map_HW)
    assert image.convert("RGBA").getpixel((0, 0))[3] == (0 if label_map_HW[0, 0] == 0 else 255)  # type: ignore[index]
