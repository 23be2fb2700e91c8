"""The loopback hub answers as the real one does, and fails when told to."""

from __future__ import annotations

import http.client
import os
import pickle
import urllib.request

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.hub import Hub, Repository, ThreadedHub, pickle_only, running_hub
from e2e.hub.hub import byte_range

WEIGHTS = os.urandom(300_000)
NAME = "acme/small"


@pytest.fixture
def folder(tmp_path):
    repository = tmp_path / "repository"
    (repository / "sub").mkdir(parents=True)
    (repository / "config.json").write_text("{}")
    (repository / "model.safetensors").write_bytes(WEIGHTS)
    (repository / "sub" / "notes.txt").write_text("x")
    return repository


@pytest.fixture
async def hub(folder):
    repositories = {NAME: Repository(folder=folder, revisions=frozenset({"main", "v1"}))}
    repositories["acme/secret"] = Repository(folder=folder, token="hf_right")
    async with Hub(repositories) as running:
        yield running


@pytest.fixture
async def client(hub):
    async with aiohttp.ClientSession(hub.url) as session:
        yield session


async def test_info_lists_files_and_the_commit(client):
    """A revision resolves to a commit of 40 hex digits, and siblings name every file."""
    async with client.get(f"/api/models/{NAME}/revision/v1?blobs=true") as answer:
        info = await answer.json()
    files = {s["rfilename"]: s for s in info["siblings"]}
    assert set(files) == {"config.json", "model.safetensors", "sub/notes.txt"}
    assert files["model.safetensors"]["lfs"]["size"] == len(WEIGHTS)
    assert len(info["sha"]) == 40
    async with client.get(f"/api/models/{NAME}/revision/{info['sha']}") as answer:
        assert answer.status == 200
    async with client.get(f"/api/models/{NAME}") as answer:
        assert (await answer.json())["sha"] == info["sha"]


async def test_file_resolves_with_its_commit(client, hub):
    """Small files come at once, weights by redirect; both name the commit, and HEAD has no body."""
    async with client.get(f"/{NAME}/resolve/main/sub/notes.txt") as answer:
        assert await answer.text() == "x"
        assert len(answer.headers["X-Repo-Commit"]) == 40
    async with client.head(
        f"/{NAME}/resolve/main/model.safetensors", allow_redirects=False
    ) as answer:
        assert answer.status == 302
        assert answer.headers["X-Linked-Size"] == str(len(WEIGHTS))
        assert answer.headers["Location"].startswith(hub.content_url)
    async with client.get(f"/{NAME}/resolve/main/model.safetensors") as answer:
        assert await answer.read() == WEIGHTS
    assert hub.bytes_sent == 1 + len(WEIGHTS)


async def test_cut_transfer_can_be_resumed(client, hub):
    """A connection cut in the middle leaves the bytes sent; a Range request brings the rest."""
    hub.cut("model.safetensors", after_bytes=100_000)
    got = b""
    async with client.get(f"/{NAME}/resolve/main/model.safetensors") as answer:
        with pytest.raises(aiohttp.ClientError):  # noqa: PT012 - what came before the cut is kept
            async for chunk in answer.content.iter_any():
                got += chunk
    assert 0 < len(got) <= 100_000
    assert hub.cuts == 1
    headers = {"Range": f"bytes={len(got)}-"}
    async with client.get(f"/{NAME}/resolve/main/model.safetensors", headers=headers) as answer:
        assert answer.status == 206
        assert (
            answer.headers["Content-Range"] == f"bytes {len(got)}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
        )
        assert got + await answer.read() == WEIGHTS


async def test_range_beyond_the_end_is_refused(client):
    """A range that the file does not have is 416 with its size."""
    headers = {"Range": "bytes=900000-"}
    async with client.get(f"/{NAME}/resolve/main/config.json", headers=headers) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */2")


@pytest.mark.parametrize(
    ("path", "token", "status", "code"),
    [
        (f"/{NAME}/resolve/main/absent", "", 404, "EntryNotFound"),
        (f"/{NAME}/resolve/v9/config.json", "", 404, "RevisionNotFound"),
        ("/acme/none/resolve/main/config.json", "", 401, "RepoNotFound"),
        ("/acme/secret/resolve/main/config.json", "", 401, "RepoNotFound"),
        ("/acme/secret/resolve/main/config.json", "hf_wrong", 401, None),
        ("/acme/secret/resolve/main/config.json", "hf_right", 200, None),
        ("/api/models/acme/secret/revision/main", "", 401, "RepoNotFound"),
    ],
)
async def test_refusals_are_the_hubs(client, path, token, status, code):
    """Missing files, revisions, repositories and tokens are told apart as the hub tells them."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with client.get(path, headers=headers) as answer:
        assert answer.status == status
        assert answer.headers.get("X-Error-Code") == code


async def test_nothing_outside_the_folder_is_served(client, folder):
    """A path that climbs out of the repository is not found."""
    (folder.parent / "outside").write_text("hush")
    async with client.get(f"/{NAME}/resolve/main/%2e%2e/outside") as answer:
        assert answer.status == 404


async def test_leaked_token_is_counted(client, hub):
    """Sending the token on to the content address is noticed."""
    path = "/acme/secret/resolve/main/model.safetensors"
    headers = {"Authorization": "Bearer hf_right"}
    async with client.get(path, headers=headers, allow_redirects=False) as answer:
        place = answer.headers["Location"]
    assert hub.leaked_tokens == 0
    async with aiohttp.ClientSession() as other, other.get(place, headers=headers) as answer:
        assert answer.status == 200
    assert hub.leaked_tokens == 1


def test_public_client_downloads_a_snapshot(folder, tmp_path):
    """The hub's own client library takes our answers for the hub's."""
    from huggingface_hub import snapshot_download

    with ThreadedHub({NAME: Repository(folder=folder)}) as hub:
        target = tmp_path / "down"
        snapshot_download(NAME, endpoint=hub.url, local_dir=target, cache_dir=tmp_path / "cache")
    assert (target / "model.safetensors").read_bytes() == WEIGHTS
    assert (target / "sub" / "notes.txt").read_text() == "x"


def test_repository_of_pickles_has_nothing_else(tmp_path):
    """The pickle repository's weights are a real pickle, and there are no others."""
    folder = pickle_only(tmp_path / "pickles")
    assert {p.name for p in folder.iterdir()} == {"config.json", "pytorch_model.bin"}
    assert pickle.loads((folder / "pytorch_model.bin").read_bytes()) == {"weight": [0.0] * 64}


@given(st.integers(1, 1000), st.integers(0, 1200), st.integers(0, 1200))
def test_ranges_stay_within_the_file(size, first, last):
    """Whatever is asked for, what is sent lies within the file, and suffixes come from its end."""
    found = byte_range(f"bytes={first}-{last}", size=size)
    assert found is None or (0 <= found[0] < found[1] <= size)
    assert byte_range(f"bytes=-{last}", size=size) == (max(0, size - last), size)
    assert byte_range("", size=size) == byte_range("lines=1-2", size=size) == (0, size)


def test_running_hub_pins_a_commit_and_cuts_only_weights(folder):
    """A blocking test gets its own commit name; the one cut spares small files and short ranges."""

    def get(url, *, part=""):
        request = urllib.request.Request(url, headers={"Range": part} if part else {})
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    with running_hub({NAME: folder}, revision="a" * 40, cut_once_after_bytes=1000) as hub:
        base = f"{hub.url}/{NAME}/resolve/{'a' * 40}"
        assert get(f"{base}/config.json") == b"{}"
        assert get(f"{base}/model.safetensors", part="bytes=0-99") == WEIGHTS[:100]
        assert hub.cuts == 0
        with pytest.raises(http.client.IncompleteRead):
            get(f"{base}/model.safetensors")
        assert get(f"{base}/model.safetensors") == WEIGHTS
        assert (hub.cuts, hub.ranges) == (1, 2)
