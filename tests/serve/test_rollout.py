"""From one model to another while requests come: plans, what a replica makes of them, and that no batch mixes two models."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sightline.models import artifact as artifacts
from sightline.serve.board import MemoryBoard
from sightline.serve.http import build
from sightline.serve.rollout import Follower, Part, Plan, Rollouts
from sightline.serve.served import Served, digest, load
from sightline.serve.service import Service
from tests.models.conftest import CONV, random_towers
from tests.serve.conftest import LIMITS
from tests.serve.test_http import detail


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two artifacts of one architecture with other weights."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name, scale in (("old", 1.0), ("new", 1.5)):
        weights = {
            key: tensor * scale if tensor.is_floating_point() else tensor
            for key, tensor in random_towers(CONV).state_dict().items()
        }
        provenance = {"corpus_root": "c0ffee", "run_id": "1", "run": {"corpus": "/secret/place"}}
        artifacts.write(folder / name, artifacts.Artifact(name, CONV, ("red", "blue"), provenance), weights, ["a red three"])
    return folder / "old", folder / "new"


def part(name: str, share: float = 1.0) -> Part:
    return Part(f"/{name}", name * 8, share)


# ------------------------------------------------------------------------------------------------ plans


def test_a_canary_grows_and_one_step_leads_back_to_what_was_before_it() -> None:
    plan = Plan("/a", 1, (part("a"),))
    canary = plan.changed("/b", "b" * 8, 0.1)
    assert canary == Plan("/a", 2, (part("a", 0.9), part("b", 0.1)), (part("a"),))
    half = canary.changed("/b", "b" * 8, 0.5)
    whole = half.changed("/b", "b" * 8, 1)
    assert (half.parts, whole.parts) == ((part("a", 0.5), part("b", 0.5)), (part("b"),))
    for later in (canary, half, whole):
        assert later.back().parts == (part("a"),)
    assert whole.version == 4 and whole.back().version == 5


def test_a_plan_that_makes_no_sense() -> None:
    plan = Plan("/a", 1, (part("a"),))
    with pytest.raises(ValueError, match="nothing to go back to"):
        plan.back()
    with pytest.raises(ValueError, match="all that is served"):
        plan.changed("/a", "a" * 8, 0.5)
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=r"as in 0\.1"):
            plan.changed("/b", "b" * 8, share)


def test_the_same_command_again_keeps_the_way_back() -> None:
    for share in (0.1, 1.0):
        plan = Plan("/a", 1, (part("a"),)).changed("/b", "b" * 8, share)
        again = plan.changed("/b", "b" * 8, share)
        assert (again.parts, again.before, again.version) == (plan.parts, (part("a"),), 3)
        assert again.back().parts == (part("a"),)


def test_the_first_replica_begins_the_plan_and_another_configuration_begins_its_own() -> None:
    rollouts = Rollouts(MemoryBoard())
    assert rollouts.start("/a", "one") == rollouts.start("/a", "another") == Plan("/a", 1, (Part("/a", "one", 1.0),))
    assert rollouts.start("/b", "two") == Plan("/b", 2, (Part("/b", "two", 1.0),))


# --------------------------------------------------------------------------------------- one replica


class OneReplica:
    """A replica without Ray, whose follower runs whenever somebody waits for it."""

    def __init__(self, model: Path) -> None:
        self.rollouts = Rollouts(MemoryBoard())
        served = load(str(model), "float32")
        self.service = Service(served, LIMITS)
        plan = self.rollouts.start(str(model), served.artifact)
        self.follower = Follower(
            self.rollouts, "r1", lambda name, pin: load(name, "float32", pinned=pin), self.service.serve, [served], plan
        )

    def follow(self, *_: object) -> None:
        if change := self.follower.follow():
            change()

    def roll(self, change: Callable[[Plan], Plan]) -> int:
        plan = self.rollouts.plan()
        assert plan is not None
        return self.rollouts.carry_out(change(plan), within_s=30, sleep=self.follow)


def to(model: Path, share: float) -> Callable[[Plan], Plan]:
    found = digest(str(model))
    assert found is not None
    return lambda plan: plan.changed(str(model), found, share)


def test_shares_decide_who_answers_and_a_request_may_choose(pair: tuple[Path, Path]) -> None:
    replica = OneReplica(pair[0])
    with TestClient(build(replica.service)) as client:

        def answering(times: int = 60, **fields: Any) -> Counter[str]:
            return Counter(client.post("/v1/embeddings", json={"input": "a"} | fields).json()["model"] for _ in range(times))

        assert answering(5) == {"old": 5}
        assert replica.roll(to(pair[1], 0.5)) == 1
        assert set(answering()) == {"old", "new"}
        assert answering(5, model="new") == {"new": 5}
        listed = client.get("/v1/models").json()["data"]
        assert [(model["id"], model["share"]) for model in listed] == [("old", 0.5), ("new", 0.5)]
        assert listed[0]["provenance"] == {"corpus_root": "c0ffee", "run_id": "1"}
        assert {model["artifact"] for model in listed} == {digest(str(path)) for path in pair}
        replica.roll(to(pair[1], 1))
        assert answering(5) == {"new": 5}
        detail(client.post("/v1/embeddings", json={"input": "a", "model": "old"}), 404)
        replica.roll(Plan.back)
        assert answering(5) == {"old": 5}


def test_no_batch_mixes_two_models_while_they_change(pair: tuple[Path, Path], png: bytes) -> None:
    """Embeddings of one image, of either model alone, are the only ones that may ever come, each under its own model's name."""
    replica = OneReplica(pair[0])
    data = {"files": {"image": png}, "data": {"labels": "red, blue"}}
    with TestClient(build(replica.service)) as client, ThreadPoolExecutor(8) as pool:
        stop = threading.Event()

        def ask_on() -> list[Any]:
            answers = []
            while not stop.is_set():
                answers.append(client.post("/v1/classify", **data))
            return answers

        asking = [pool.submit(ask_on) for _ in range(8)]
        for share in (0.5, 1):
            replica.roll(to(pair[1], share))
        replica.roll(Plan.back)
        replica.roll(to(pair[1], 0.5))
        stop.set()
        answers = [answer for one in asking for answer in one.result()]
    assert {answer.status_code for answer in answers} == {200}
    want = {}
    for path in pair:
        with TestClient(build(Service(load(str(path), "float32"), LIMITS))) as alone:
            answer = alone.post("/v1/classify", **data).json()
            want[answer["artifact"]] = answer["results"][0]["predictions"]
    seen = set()
    for answer in (answer.json() for answer in answers):
        seen.add(answer["artifact"])
        for got, wanted in zip(answer["results"][0]["predictions"], want[answer["artifact"]], strict=True):
            assert got["label"] == wanted["label"] and got["logit"] == pytest.approx(wanted["logit"], abs=1e-3)
    assert seen == want.keys()


def test_a_model_that_does_not_prove_itself_changes_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    replica = OneReplica(pair[0])
    broken = Path(shutil.copytree(pair[1], tmp_path / "broken"))
    (broken / artifacts.WEIGHTS).write_bytes(b"none")
    with pytest.raises(ValueError, match=r"nothing was changed: .*weights.safetensors is damaged"):
        replica.roll(to(broken, 0.1))
    replica.follow()
    assert [share.served.model.name for share in replica.service.shares] == ["old"]
    plan = replica.rollouts.plan()
    assert plan is not None and [one.model for one in plan.parts] == [str(pair[0])]


def test_whatever_keeps_a_replica_from_a_model_is_told_and_a_mended_one_is_not_blamed_for_it(pair: tuple[Path, Path]) -> None:
    rollouts = Rollouts(MemoryBoard())
    plan = rollouts.start("/a", "a" * 8)
    begun, go = threading.Event(), threading.Event()

    def load_it(model: str, pinned: str) -> Served:
        if model == "/large":
            raise RuntimeError("out of memory")
        begun.set()
        assert go.wait(30)
        return load(str(pair[1]), "float32")

    having = [replace(load(str(pair[0]), "float32"), artifact="a" * 8)]
    follower = Follower(rollouts, "one", load_it, lambda wanted: None, having, plan)
    rollouts.put(plan := plan.changed("/large", "l" * 8, 1))
    assert follower.follow() is None
    assert rollouts.reports()["one"].error == "out of memory" and rollouts.reports()["one"].version == plan.version
    rollouts.put(plan.changed("/mended", "m" * 8, 1))
    thread = threading.Thread(target=follower.follow)
    thread.start()
    assert begun.wait(30)
    follower.report()  # another thread's, while it loads
    assert rollouts.reports()["one"].error is None
    go.set()
    thread.join()


def test_a_folder_that_changed_since_it_was_rolled_out_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    pinned = digest(str(folder))
    shutil.rmtree(folder)
    shutil.copytree(pair[1], folder)
    with pytest.raises(ValueError, match=r"has changed since it was rolled out .*sightline rollout"):
        load(str(folder), "float32", pinned=pinned)
    assert load(str(folder), "float32", pinned=digest(str(folder))).model.name == "new"


def test_a_service_without_replicas_changes_nothing_and_says_so() -> None:
    rollouts = Rollouts(MemoryBoard())
    plan = rollouts.start("/a", "a" * 8)
    with pytest.raises(ValueError, match="not all replicas"):
        rollouts.carry_out(plan.changed("/b", "b" * 8, 1), within_s=0, sleep=lambda _: None)


def test_what_is_served_is_known_by_name_and_by_digest(pair: tuple[Path, Path]) -> None:
    served: Served = load(str(pair[0]), "float32")
    assert served.is_called("old") and served.is_called(served.artifact[:8]) and served.is_called(served.artifact)
    assert not served.is_called(served.artifact[:7]) and not served.is_called("new")
