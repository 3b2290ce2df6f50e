"""`kclf serve`: the page, the API, and requests that mean no good."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import Future
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

fastapi = pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
from fastapi.testclient import TestClient

import kclf
from kclf.errors import ImageError, KclfError
from kclf.interpret import SimilarPhotos
from kclf.serve import Engine, create_app, serve
from kclf.serve import engine as engine_module
from kclf.serve.limits import Limits
from kclf.serve.server import _listening
from tests.conftest import with_random_logits

CLASSES = ["cat", "dog", "eel"]


@pytest.fixture(scope="module")
def model():
    return with_random_logits(kclf.ImageClassifier("MobileNetV2", CLASSES, size=32, weights=None))


@pytest.fixture(scope="module")
def client(model):
    app = create_app(model, title="pets", limits=Limits(num_bytes=200_000, photos=8, pixels=1_000_000))
    with TestClient(app, base_url="http://localhost") as made:
        yield made


def encoded(kind="PNG", size=(40, 30), **options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_bomb(side=30_000):
    """A PNG of a few kilobytes that claims, and brings, many pixels."""
    small = io.BytesIO()
    Image.new("L", (1, 1)).save(small, "PNG")
    head = small.getvalue()
    size = side.to_bytes(4, "big")
    chunk = b"IHDR" + size + size + head[24:29]
    data = zlib.compress(bytes(10**7), 9)
    crc = lambda body: zlib.crc32(body).to_bytes(4, "big")  # noqa: E731
    idat = b"IDAT" + data
    return (
        head[:8] + b"\0\0\0\r" + chunk + crc(chunk) + len(data).to_bytes(4, "big") + idat + crc(idat)
        + b"\0\0\0\0IEND" + crc(b"IEND")
    )  # fmt: skip


def test_the_answer_is_the_model_s_own_whatever_way_the_photo_comes(client, model):
    photo = encoded()
    wanted = kclf.predict(model, model.read(photo)[None])
    ways = [
        client.post("/predict", files={"photos": ("a.png", photo)}),
        client.post("/predict", json={"photos": [base64.b64encode(photo).decode()]}),
        client.post("/predict", content=photo, headers={"content-type": "image/png"}),
    ]
    for answer in ways:
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["predictions"]
        assert row["prediction"] == wanted.label_text(wanted.predicted[0])
        assert [one["class"] for one in row["classes"]] == [name for name, _ in wanted.top(3)[0]]
        np.testing.assert_allclose(
            [one["probability"] for one in row["classes"]], [p for _, p in wanted.top(3)[0]], atol=2e-6
        )


def test_a_batch_keeps_its_order_and_names_what_cannot_be_read(client):
    files = [("photos", (f"{n}.png", encoded(size=(20 + n, 20)))) for n in range(3)]
    files.insert(1, ("photos", ("broken.png", b"no photo")))
    rows = client.post("/predict?top=1", files=files).json()["predictions"]
    assert [row["name"] for row in rows] == ["0.png", "broken.png", "1.png", "2.png"]
    assert "error" in rows[1]
    assert all(len(row["classes"]) == 1 for row in (rows[0], *rows[2:]))


def test_explain_gives_heat_and_neighbours(model):
    def similar(square, count):
        return [{"label": "cat", "similarity": 1.0, "thumbnail": "data:,"}] * count

    with TestClient(create_app(model, similar=similar), base_url="http://localhost") as client:
        found = client.post("/explain", files={"photos": ("a.png", encoded())}).json()
    assert found["heat"].startswith("data:image/png")
    assert len(found["similar"]) == 6


def test_the_page_holds_the_classes_and_no_script_of_theirs():
    names = ["</script><script>alert(1)", "dog"]
    model = with_random_logits(kclf.ImageClassifier("MobileNetV2", names, size=32, weights=None))
    with TestClient(create_app(model), base_url="http://localhost") as client:
        answer = client.get("/")
    assert answer.status_code == 200
    assert "</script><script>alert" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_are_served(task):
    model = kclf.ImageClassifier("MobileNetV2", ["height", "width"], size=32, weights=None, task=task)
    model = with_random_logits(model)
    photo = encoded()
    wanted = kclf.predict(model, model.read(photo)[None])
    with TestClient(create_app(model), base_url="http://localhost") as client:
        (row,) = client.post("/predict", files={"photos": ("a.png", photo)}).json()["predictions"]
        explained = client.post("/explain", files={"photos": ("a.png", photo)})
    assert row["prediction"] == wanted.label_text(wanted.predicted[0])
    found = row["numbers"] if task == "regression" else row["classes"]
    values = {one.get("name", one.get("class")): one.get("value", one.get("probability")) for one in found}
    expected = dict(zip(model.class_names, wanted.probabilities[0], strict=True))
    assert values == pytest.approx(expected, abs=1e-5)
    assert explained.status_code == 200, explained.text


def test_a_photo_below_the_threshold_may_be_none_of_the_classes(client):
    photo = {"files": {"photos": ("a.png", encoded())}}
    answers = [client.post(f"/predict{query}", **photo) for query in ("", "?threshold=0", "?threshold=1")]
    rows = [answer.json()["predictions"][0] for answer in answers]
    assert [row.get("none_of_these") for row in rows] == [None, False, True]
    assert client.post("/predict?threshold=7", **photo).status_code == 422


def test_health_metrics_and_description(client):
    assert client.get("/health").json()["classes"] == CLASSES
    client.post("/predict", files={"photos": ("a.png", encoded())})
    assert "kclf_photos_total" in client.get("/metrics").text
    assert "/predict" in client.get("/openapi.json").json()["paths"]


def sent(content, kind):
    return {"content": content, "headers": {"content-type": kind}}


LONG = {"content": b"x", "headers": {"content-type": "image/png", "content-length": "9999999"}}
ENDLESS = {"content": b"x", "headers": {"content-type": "image/png", "content-length": 5000 * "9"}}
MANY = {"files": [("photos", ("a.png", encoded(size=(2, 2)))) for _ in range(9)]}
HOSTILE = {
    "nothing": ({}, [415]),
    "another type": (sent(b"x", "text/html"), [415]),
    "no photo": (sent(b"hello", "image/png"), [422]),
    "empty body": (sent(b"", "image/png"), [422]),
    "truncated": (sent(encoded()[:200], "image/png"), [422]),
    "truncated JPEG": (sent(encoded("JPEG")[:100], "image/jpeg"), [422]),
    "bomb": (sent(png_bomb(), "image/png"), [422]),
    "many pixels": (sent(encoded("GIF", size=(1200, 1200)), "image/gif"), [413, 422]),
    "svg": (sent(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), [422]),
    "postscript": (sent(b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 1 1\n", "image/jpeg"), [422]),
    "too many bytes": (sent(bytes(200_001), "image/png"), [413]),
    "lying length": (LONG, [413]),
    "a length of 5,000 digits": (ENDLESS, [413]),
    "too many photos": (MANY, [400, 422]),
    "form without photos": ({"data": {"path": "/etc/passwd"}}, [415, 422]),
    "damaged form": (sent(b"--x\r\nbroken", "multipart/form-data; boundary=x"), [400, 422]),
    "form without boundary": (sent(b"x", "multipart/form-data"), [400]),
    "no JSON": (sent(b"{", "application/json"), [422]),
    "deep JSON": (sent(b"[" * 100_000, "application/json"), [422]),
    "JSON of numbers": ({"json": {"photos": [1, 2]}}, [422]),
    "JSON, no base64": ({"json": {"photos": ["!!!"]}}, [422]),
    "JSON, a path": ({"json": {"photos": ["/etc/passwd"]}}, [422]),
    "JSON, a list": ({"json": ["x"]}, [422]),
}


@pytest.mark.parametrize(("request_", "status"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_request_is_refused(client, request_, status):
    answer = client.post("/predict", **request_)
    assert answer.status_code in status, answer.text
    assert "Traceback" not in answer.text
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "/static/../../etc/passwd", "/%2e%2e/etc/passwd", "/predict/x"]
)
def test_no_path_of_the_server_is_served(client, path):
    assert client.get(path).status_code in (404, 405)


def test_another_host_name_is_refused(client):
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400


def test_a_token_is_asked_for(model):
    with TestClient(create_app(model, token="secret"), base_url="http://localhost") as client:
        assert client.get("/health").status_code == 401
        assert client.get("/health", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/health", headers={"authorization": "Bearer secret"}).status_code == 200
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/?token=secret").status_code == 200
        assert client.get("/health").status_code == 200  # by the cookie


def test_a_body_that_does_not_come_is_given_up(model):
    with TestClient(create_app(model, limits=Limits(seconds=0.3)), base_url="http://localhost") as client:
        held = threading.Event()

        def slow():
            yield b"x"
            held.wait(2)

        answer = client.post("/predict", content=slow(), headers={"content-type": "image/png"})
        held.set()
        assert answer.status_code in (408, 422)


def ready(photo):
    """What the engine takes, of a photo that has been read."""
    done = Future()
    done.set_result(photo)
    return done


def batches_of(engine, monkeypatch):
    """The number of photos of each batch, as they are predicted."""
    sizes, predict = [], engine._predict
    monkeypatch.setattr(engine, "_predict", lambda batch: (sizes.append(len(batch)), predict(batch)))
    return sizes


def test_photos_that_come_together_share_batches(model, monkeypatch):
    engine = Engine(model, wait=0.5)
    sizes = batches_of(engine, monkeypatch)
    photos = [model.read(encoded(size=(20 + n, 20))) for n in range(8)]
    futures = [engine.submit(ready(photo)) for photo in photos]
    engine.start()
    found = [future.result(timeout=20).probabilities[0] for future in futures]
    engine.close()
    assert sizes == [8]
    np.testing.assert_allclose(found, kclf.predict(model, np.stack(photos)).probabilities, atol=1e-6)


def test_photos_that_come_while_others_are_read_join_their_batch(model, monkeypatch):
    engine, photo = Engine(model, wait=0.001), model.read(encoded())
    sizes, slow = batches_of(engine, monkeypatch), Future()
    engine.start()
    first = engine.submit(slow)
    time.sleep(0.1)
    second = engine.submit(ready(photo))
    slow.set_result(photo)
    np.testing.assert_array_equal(first.result(20).probabilities, second.result(20).probabilities)
    engine.close()
    assert sizes == [2]


def test_a_photo_that_fails_or_is_given_up_leaves_the_others_their_answers(model, monkeypatch):
    engine, photo, broken = Engine(model), model.read(encoded()), Future()
    broken.set_exception(ImageError("photo", "torn"))
    sizes = batches_of(engine, monkeypatch)
    futures = [engine.submit(one) for one in (ready(photo), broken, ready(photo))]
    assert futures[0].cancel()  # the client has gone
    engine.start()
    assert len(futures[2].result(20).probabilities) == 1
    with pytest.raises(ImageError, match="torn"):
        futures[1].result(20)
    engine.close()
    assert sizes == [1]


def test_a_prediction_that_fails_ends_its_requests_and_not_the_engine(model, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("out of memory")

    engine, photo = Engine(model), model.read(encoded())
    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "predict", out_of_memory)
        engine.start()
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.submit(ready(photo)).result(20)
    assert len(engine.submit(ready(photo)).result(20).probabilities) == 1
    engine.close()


def test_a_queue_that_is_full_refuses(model, monkeypatch):
    monkeypatch.setattr(engine_module, "MOST_WAITING", 1)
    engine, photo = Engine(model), ready(model.read(encoded()))
    engine.submit(photo)
    with pytest.raises(engine_module.Busy):
        engine.submit(photo)
    engine.start()
    engine.close()


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_taken_port_ends_in_one_message(model, free_port):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", free_port))
        holder.listen()
        with pytest.raises(KclfError, match=f"Cannot listen on 127.0.0.1:{free_port}"):
            serve(model, port=free_port)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_does_not_start_ends(model, free_port, monkeypatch):
    async def broken(self, sockets=None):
        raise RuntimeError("no loop")

    monkeypatch.setattr("uvicorn.Server.startup", broken)
    with pytest.raises(KclfError, match="did not start"):
        serve(model, port=free_port)


def test_the_server_predicts_in_the_main_thread_until_it_is_told_to_end(model, free_port, monkeypatch, capfd):
    threads, predict = [], engine_module.predict

    def noted(*args):
        threads.append(threading.current_thread())
        return predict(*args)

    def requests():
        address = f"http://127.0.0.1:{free_port}"
        for _ in range(100):
            with suppress(urllib.error.URLError):
                urllib.request.urlopen(f"{address}/health").read()
                break
            time.sleep(0.05)
        request = urllib.request.Request(f"{address}/predict", encoded(), {"Content-Type": "image/png"})
        answers.append(json.load(urllib.request.urlopen(request)))
        with socket.create_connection(("127.0.0.1", free_port)) as goes_away:
            header = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            goes_away.sendall(header + b"Content-Length: 99\r\n\r\nx")
        urllib.request.urlopen(request).read()

    def requests_and_ctrl_c():
        try:
            requests()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(engine_module, "predict", noted)
    answers = []
    client = threading.Thread(target=requests_and_ctrl_c)
    client.start()
    serve(model, port=free_port)
    client.join()
    assert answers[0]["predictions"][0]["classes"]
    assert threads == [threading.main_thread()] * 2
    assert "Traceback" not in capfd.readouterr().err


def test_small_answers_are_sent_at_once(free_port):
    address = "127.0.0.1", free_port
    with (
        _listening(*address) as listening,
        socket.create_connection(address),
        listening.accept()[0] as accepted,
    ):
        assert accepted.proto == socket.IPPROTO_TCP  # asyncio sets TCP_NODELAY on such ones only


def test_neighbours_of_other_tasks_have_their_labels_as_text(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    numbers = np.arange(6) + 0.5
    data = kclf.ImageData.from_arrays((images, numbers), task="regression", batch_size=4)
    model = kclf.ImageClassifier("MobileNetV2", ["age"], size=32, weights=None, task="regression")
    photos = SimilarPhotos.of(model, data.train, tmp_path, progress=False)
    assert set(photos.labels) <= {f"{number}" for number in numbers}


def test_the_nearest_photo_is_itself(model, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    data = kclf.ImageData.from_arrays((images, CLASSES * 4), batch_size=4)
    photos = SimilarPhotos.of(model, data.train, tmp_path, progress=False)
    first = data.train.dataset.images[0]
    nearest = photos.nearest(first, 3)
    assert nearest[0].similarity == pytest.approx(1, abs=1e-4)
    assert nearest[0].path == str(photos.paths[0])
    assert [one.similarity for one in nearest] == sorted((one.similarity for one in nearest), reverse=True)
