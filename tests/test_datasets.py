from __future__ import annotations

import functools
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pytest
from PIL import Image

from kclf import datasets
from kclf.data import ImageData
from kclf.errors import DataError


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "png")
    return buffer.getvalue()


def tar_of(file, names):
    with tarfile.open(file, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(png())
            tar.addfile(member, io.BytesIO(png()))


def zip_of(file, names):
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, png())


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder that a local server serves, and its URL."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def offer(server, monkeypatch):
    """Put an archive on the server and make it the source of "pets"."""
    folder, url = server

    def put(name, make, members, checksum=None):
        make(folder / name, members)
        digest = checksum or hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(datasets.SOURCES, "pets", datasets.Source(f"{url}/{name}", digest, "images"))
        return folder / name

    return put


MEMBERS = [f"images/{kind}_{i}.png" for kind in ("cat", "dog") for i in range(4)]


@pytest.mark.parametrize(("name", "make"), [("a.tar.gz", tar_of), ("a.zip", zip_of)])
def test_an_archive_is_fetched_unpacked_and_kept(offer, tmp_path, name, make):
    archive = offer(name, make, MEMBERS)

    folder = datasets.fetch("pets", tmp_path / "cache")
    archive.unlink()
    again = datasets.fetch("pets", tmp_path / "cache")

    assert folder == again == tmp_path / "cache" / "datasets" / "kclf-pets" / "images"
    assert ImageData.from_folder(folder, label_regex=r"(.+)_\d+", size=8).class_names == ["cat", "dog"]
    assert [p.name for p in (tmp_path / "cache" / "datasets").glob("[!.]*")] == ["kclf-pets"]


def test_a_second_process_waits_for_the_first_and_takes_what_it_fetched(offer, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    archive = offer("a.zip", zip_of, MEMBERS)
    root = tmp_path / "cache" / "datasets"
    place = root / ".kclf-fetching" / "pets"
    place.mkdir(parents=True)
    found: list[object] = []
    with open(place / ".lock", "w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(datasets.fetch("pets", tmp_path / "cache")))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        (root / "kclf-pets" / "images").mkdir(parents=True)
        archive.unlink()
    second.join(30)

    assert found == [root / "kclf-pets" / "images"]


def test_what_a_killed_fetch_left_is_swept_and_a_foreign_archive_of_the_same_name_stays(offer, tmp_path):
    offer("a.zip", zip_of, MEMBERS)
    root = tmp_path / "cache" / "datasets"
    (root / ".kclf-fetching" / "pets" / ".kclf-x.partial" / "kclf-pets").mkdir(parents=True)
    (root / "a.zip").write_text("of somebody else")

    datasets.fetch("pets", tmp_path / "cache")

    assert (root / "a.zip").read_text() == "of somebody else"
    assert [path.name for path in (root / ".kclf-fetching" / "pets").iterdir()] == [".lock"]


def test_keras_own_folder_is_the_default(offer, tmp_path, monkeypatch):
    offer("a.zip", zip_of, MEMBERS)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))

    assert datasets.fetch("pets") == tmp_path / "home" / "datasets" / "kclf-pets" / "images"


def test_a_wrong_archive_is_refused(offer, tmp_path):
    offer("a.zip", zip_of, MEMBERS, checksum="0" * 64)

    with pytest.raises(DataError, match=r"'pets'.*hash"):
        datasets.fetch("pets", tmp_path / "cache")
    assert not (tmp_path / "cache" / "datasets" / "kclf-pets").exists()


@pytest.mark.parametrize(("name", "make"), [("a.tar.gz", tar_of), ("a.zip", zip_of)])
def test_members_that_would_land_outside_are_refused(offer, tmp_path, name, make):
    offer(name, make, ["images/cat_1.png", "../../evil.png"])

    with pytest.raises(DataError, match=r"cannot be unpacked.*outside"):
        datasets.fetch("pets", tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.png"))
    assert not (tmp_path / "cache" / "datasets" / "kclf-pets").exists()


def test_without_network_the_message_says_what_to_bring_where(offer, tmp_path):
    archive = offer("a.zip", zip_of, MEMBERS)
    there = tmp_path / "cache" / "datasets" / "a.zip"
    content = archive.read_bytes()
    archive.unlink()

    with pytest.raises(DataError, match=rf"Could not fetch 'pets'.*404.*bring http.*a\.zip to {there}"):
        datasets.fetch("pets", tmp_path / "cache")
    there.write_bytes(content)

    assert len(list(datasets.fetch("pets", tmp_path / "cache").iterdir())) == len(MEMBERS)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match=r"dogs-vs-cats, flowers.*pets.*name='cifar'"):
        datasets.fetch("cifar")


@pytest.mark.parametrize("name", datasets.dataset_names())
def test_every_source_has_an_https_address_and_a_checksum(name):
    source = datasets.SOURCES[name]

    assert source.url.startswith("https://")
    assert len(source.checksum) in (32, 64)
    assert set(source.checksum) <= set("0123456789abcdef")
