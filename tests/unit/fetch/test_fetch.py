"""The downloader against a hub on loopback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from e2e.hub.hub import Hub, Repository, pickle_only
from trimtab_workers.fetch import Downloader, FetchError, main, select

if TYPE_CHECKING:
    from pathlib import Path

NAME = "acme/tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with safetensors of 3 MiB, its configuration and a file nobody needs."""
    found = tmp_path / "repository"
    found.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [786432], "data_offsets": [0, 3 << 20]}})
    data = bytes(range(256)) * (3 << 12)
    (found / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header.encode() + data
    )
    (found / "config.json").write_text('{"model_type": "llama"}')
    (found / "README.md").write_text("not needed")
    return found


def a_downloader(hub: Hub, repository: Repository, **changes: str) -> Downloader:
    fields = {"endpoint": hub.url, "repository": NAME, "revision": repository.commit}
    return Downloader(**(fields | changes), backoff_seconds=0.01)


async def test_the_model_and_its_configuration_arrive(folder: Path, tmp_path: Path) -> None:
    """What serves a model is fetched byte for byte, and nothing else."""
    repository = Repository(folder=folder)
    async with Hub({NAME: repository}) as hub:
        await a_downloader(hub, repository).fetch(tmp_path / "to")
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    weights = tmp_path / "to" / "model.safetensors"
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()


async def test_a_cut_transfer_goes_on_where_it_ended(folder: Path, tmp_path: Path) -> None:
    """After a cut the rest is asked for by range, so that nothing is sent twice."""
    repository = Repository(folder=folder)
    async with Hub({NAME: repository}) as hub:
        hub.cut("", after_bytes=1 << 20)
        await a_downloader(hub, repository).fetch(tmp_path / "to")
        assert hub.cuts == 1
        assert any(r.range.startswith("bytes=") for r in hub.requests)
        size = (folder / "model.safetensors").stat().st_size
        assert hub.bytes_sent < size + (1 << 18)
    weights = tmp_path / "to" / "model.safetensors"
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()


async def test_a_second_run_sends_no_weights_again(folder: Path, tmp_path: Path) -> None:
    """A restarted container finds its files complete."""
    repository = Repository(folder=folder)
    async with Hub({NAME: repository}) as hub:
        await a_downloader(hub, repository).fetch(tmp_path / "to")
        sent = hub.bytes_sent
        await a_downloader(hub, repository).fetch(tmp_path / "to")
        assert hub.bytes_sent == sent


async def test_headers_only_keeps_sizes_and_headers(folder: Path, tmp_path: Path) -> None:
    """An inspection gets every size and header, and the weights are a hole."""
    repository = Repository(folder=folder)
    async with Hub({NAME: repository}) as hub:
        await a_downloader(hub, repository).fetch(tmp_path / "to", headers_only=True)
    real, sparse = folder / "model.safetensors", tmp_path / "to" / "model.safetensors"
    assert sparse.stat().st_size == real.stat().st_size
    length = 8 + int.from_bytes(real.read_bytes()[:8], "little")
    assert sparse.read_bytes()[:length] == real.read_bytes()[:length]
    assert not any(sparse.read_bytes()[length:])


async def test_wrong_bytes_are_refused(folder: Path, tmp_path: Path) -> None:
    """Bytes that do not have the announced digest never become the model."""
    repository = Repository(folder=folder)
    part = tmp_path / "to" / ".model.safetensors.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * (1 << 20))
    async with Hub({NAME: repository}) as hub:
        await a_downloader(hub, repository).fetch(tmp_path / "to")
    weights = tmp_path / "to" / "model.safetensors"
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()


async def test_the_token_reaches_the_hub_and_nobody_else(folder: Path, tmp_path: Path) -> None:
    """A private repository opens with its token, which the redirect's host never sees."""
    repository = Repository(folder=folder, token="secret")
    async with Hub({NAME: repository}) as hub:
        with pytest.raises(FetchError, match="tokenSecretRef"):
            await a_downloader(hub, repository).fetch(tmp_path / "no")
        await a_downloader(hub, repository, token="secret").fetch(tmp_path / "to")
        assert hub.leaked_tokens == 0
        assert any(r.authorized for r in hub.requests)


async def test_pickles_are_refused(tmp_path: Path) -> None:
    """A repository whose only weights are pickles is refused by name, and none is fetched."""
    repository = Repository(folder=pickle_only(tmp_path / "pickles"))
    async with Hub({NAME: repository}) as hub:
        with pytest.raises(FetchError, match="pickles") as caught:
            await a_downloader(hub, repository).fetch(tmp_path / "to")
    assert caught.value.reason == "PickleRefused"
    assert not list((tmp_path / "to").iterdir())


class LongListing(Hub):
    """A hub whose repositories hold thousands of files besides."""

    async def _info(self, request: web.Request) -> web.Response:
        document = json.loads((await super()._info(request)).text or "")
        others = [{"rfilename": f"images/{n:05}.png", "size": n} for n in range(20_000)]
        # Entries that no hub sends must not end as a traceback either.
        document["siblings"] += [*others, "text", {"rfilename": 7, "size": "many", "lfs": []}]
        return web.json_response(document)


async def test_a_long_list_of_files_is_read_whole(folder: Path, tmp_path: Path) -> None:
    """A list that comes in many pieces is read to its end."""
    repository = Repository(folder=folder)
    async with LongListing({NAME: repository}) as hub:
        await a_downloader(hub, repository).fetch(tmp_path / "to")
    assert (tmp_path / "to" / "model.safetensors").is_file()


class NoJson(Hub):
    """A hub behind a proxy that answers with a page."""

    async def _info(self, _: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")


async def test_a_list_that_is_no_json_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    """What is no list of files ends in a reason, after all attempts."""
    repository = Repository(folder=folder)
    async with NoJson({NAME: repository}) as hub:
        with pytest.raises(FetchError, match="no JSON") as caught:
            await a_downloader(hub, repository).fetch(tmp_path / "to")
    assert caught.value.reason == "DownloadFailed"


async def test_an_unknown_revision_is_not_found(folder: Path, tmp_path: Path) -> None:
    """A commit that does not exist ends in ModelNotFound with repository and revision."""
    repository = Repository(folder=folder)
    async with Hub({NAME: repository}) as hub:
        with pytest.raises(FetchError, match="f" * 40) as caught:
            await a_downloader(hub, repository, revision="f" * 40).fetch(tmp_path / "to")
    assert caught.value.reason == "ModelNotFound"


def test_a_branch_is_no_revision() -> None:
    """Only a full commit hash pins what a fleet serves."""
    with pytest.raises(FetchError, match="40 hex digits"):
        Downloader(endpoint="http://hub", repository=NAME, revision="main")


@pytest.mark.parametrize("name", ["../evil.safetensors", "a/b.safetensors", "/etc/x.safetensors"])
def test_names_never_leave_the_folder(name: str) -> None:
    """A hub that lists a path instead of a name gets no file written there."""
    with pytest.raises(FetchError):
        select(NAME, [{"rfilename": name, "size": 1}])


def test_a_refusal_fits_whatever_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escapes are counted: the kubelet cuts at 4,096 bytes, in mid-JSON."""
    report = tmp_path / "report"

    async def refuse(*_: object, **__: object) -> None:
        raise FetchError("ModelNotFound", "\U0001f600" * 2000)

    monkeypatch.setenv("TRIMTAB_TERMINATION_LOG", str(report))
    monkeypatch.setattr(Downloader, "fetch", refuse)
    monkeypatch.setattr("trimtab_workers.fetch.logs.configure", lambda: None)
    arguments = ["--repository", NAME, "--revision", "f" * 40, "--directory", str(tmp_path)]
    assert main(arguments) == 1
    assert report.stat().st_size <= 4096
    assert json.loads(report.read_text())["reason"] == "ModelNotFound"
