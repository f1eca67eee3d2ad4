"""Downloads from a hub, offline starts, and the ``models`` commands: always a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from fake_hub import COMMIT, CONFIG, NEXT_COMMIT, FakeHub

MIB = 1 << 20
LARGE = random.Random(7).randbytes(24 * MIB)  # noqa: S311 - no secret
INDEX = "model.safetensors.index.json"
CLOSED = "http://127.0.0.1:9"


class Sidecar:
    """Runs the sidecar with a cache of its own and one hub."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "home" / "hub"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING_FACE")) and not name.lower().endswith("_proxy")
        }
        self.environment["HF_HOME"] = str(folder / "home")

    def start(
        self, hub: FakeHub | None, *arguments: str, stderr: int = subprocess.PIPE, **environment: Any
    ) -> subprocess.Popen[str]:
        endpoint = {"HF_ENDPOINT": hub.address if hub else CLOSED}
        return subprocess.Popen(
            [sys.executable, "-m", "akidb_sidecar", *arguments],
            env={**self.environment, **endpoint, **environment},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def run(self, hub: FakeHub | None, *arguments: str, **environment: Any) -> tuple[int, Any, str]:
        """Return exit code, answer, and standard error."""
        process = self.start(hub, *arguments, **environment)
        stdout, stderr = process.communicate(timeout=60)
        assert "Traceback" not in stderr
        assert stdout.count("\n") == 1
        return process.returncode, json.loads(stdout), stderr

    def prepare(self, hub: FakeHub | None, *flags: str, **environment: str) -> dict[str, Any]:
        """Return the answer of a command that must succeed."""
        return self.good(hub, "prepare", "--model", "owner/name", *flags, **environment)

    def good(self, hub: FakeHub | None, *arguments: str, **environment: str) -> dict[str, Any]:
        exit_code, answer, _ = self.run(hub, *arguments, **environment)
        assert exit_code == 0, answer
        assert isinstance(answer, dict)
        return answer

    def error(self, hub: FakeHub | None, code: str, *arguments: str, **environment: str) -> str:
        """Return the message of a command that must fail."""
        arguments = arguments or ("prepare", "--model", "owner/name")
        exit_code, answer, _ = self.run(hub, *arguments, **environment)
        assert (exit_code, answer["error"]["code"]) == (78, code), answer
        message: str = answer["error"]["message"]
        assert "\n" not in message
        return message

    @property
    def repository(self) -> Path:
        return self.cache / "models--owner--name"


@pytest.fixture
def sidecar(tmp_path: Path) -> Sidecar:
    return Sidecar(tmp_path)


def weights(answer: dict[str, Any], name: str = "model.safetensors") -> bytes:
    return (Path(answer["path"]) / name).read_bytes()


PULL = ("models", "pull", "--model", "owner/name")
FIND = ("models", "path", "--model", "owner/name")


def test_only_json_and_weights_for_this_program_are_downloaded(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        wanted = {*hub.files, "1_Pooling/config.json", "tokenizer_config.json"} - {"pytorch_model.bin"}
        others = ("onnx/config.json", "openvino/a.json", "original/model.safetensors", "x/onnx/a.json")
        for name in (*wanted, *others, "vocab.txt", "tokenizer.model", "README.md", "model.onnx"):
            hub.files.setdefault(name, b"{}")
        path = Path(sidecar.prepare(hub)["path"])
    assert {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} == wanted


@pytest.mark.parametrize(
    ("missing", "parts"),
    [
        ("model.safetensors", ("`pytorch_model.bin`", "pickle", "no `*.safetensors`")),
        ("config.json", ("no `config.json`",)),
        ("tokenizer.json", ("no `tokenizer.json`",)),
    ],
)
def test_repository_that_is_no_model_is_refused_before_a_file_is_fetched(
    sidecar: Sidecar, missing: str, parts: tuple[str, ...]
) -> None:
    with FakeHub() as hub:
        del hub.files[missing]
        message = sidecar.error(hub, "bad_model")
        assert not any("/resolve/" in path for path in hub.requests)
    assert all(part in message for part in ("`owner/name`", *parts)), message


def test_transformer_in_a_folder_of_its_own_is_downloaded_and_must_be_whole(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            hub.files[f"0_Transformer/{name}"] = hub.files.pop(name)
        hub.files["1_Pooling/config.json"] = b"{}"
        hub.files["modules.json"] = b'[{"path": "0_Transformer", "type": "x"}]'
        path = Path(sidecar.prepare(hub)["path"])
        assert (path / "0_Transformer" / "model.safetensors").is_file()
        _, models, _ = sidecar.run(None, "models", "list")
        assert models[-1]["path"] == str(path)
        assert models[-1]["state"] == "ready"
        hub.move({**hub.files, "modules.json": b'[{"path": "other", "type": "x"}]'}, NEXT_COMMIT)
        message = sidecar.error(hub, "bad_model", *PULL)
        assert "no `other/config.json`" in message
        del hub.files["0_Transformer/tokenizer.json"]
        hub.move(hub.files, "f" * 40)
        assert "no `config.json`" in sidecar.error(hub, "bad_model", *PULL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("command", [("prepare", *PULL[2:]), PULL])
def test_download_that_was_cut_off_goes_on_where_it_stopped(
    sidecar: Sidecar, number: signal.Signals, command: tuple[str, ...]
) -> None:
    with FakeHub() as hub:
        hub.files["model.safetensors"] = LARGE
        hub.stall_after = 22 * MIB
        process = sidecar.start(hub, *command)
        assert hub.stalled.wait(30)
        blobs = sidecar.repository / "blobs"
        wait_until(lambda: sum(file.stat().st_size for file in blobs.glob("*.incomplete")) == 20 * MIB, "it")
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=10)
        assert (process.returncode, stdout, stderr) == (-number, "", "")
        assert "is not in the local cache" in sidecar.error(hub, "not_downloaded", *FIND)
        hub.flow.set()
        answer = sidecar.good(hub, *command)
        ranges = [request.range for request in hub.downloads("model.safetensors")]
    assert ranges == [None, f"bytes={20 * MIB}-"]
    assert weights(answer) == LARGE
    assert not list(blobs.glob("*.incomplete"))


@pytest.mark.parametrize("instead", [LARGE[: 9 * MIB], LARGE[:-1] + b"?", b"?" + LARGE[:9]])
def test_answer_of_wrong_size_or_content_does_not_stay(sidecar: Sidecar, instead: bytes) -> None:
    with FakeHub() as hub:
        hub.files["model.safetensors"] = LARGE
        hub.instead["model.safetensors"] = instead
        assert f"the download of `owner/name` from {hub.address} failed" in sidecar.error(
            hub, "hub_unreachable"
        )
        sidecar.error(None, "not_downloaded", *FIND)
        hub.instead.clear()
        # What is left of it may be wrong; then it is found out and thrown away at the next try.
        exit_code, answer, _ = sidecar.run(hub, *PULL)
        if exit_code != 0:
            answer = sidecar.good(hub, *PULL)
    assert weights(answer) == LARGE


def test_small_file_of_wrong_size_does_not_stay(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        hub.instead["config.json"] = b'{"hidden_size'
        assert f"`config.json` has 13 bytes instead of {len(CONFIG)}" in sidecar.error(hub, "hub_unreachable")
        sidecar.error(None, "not_downloaded", *FIND)
        hub.instead.clear()
        assert weights(sidecar.prepare(hub), "config.json") == hub.files["config.json"]


def test_two_processes_download_the_same_model_once(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        hub.files["model.safetensors"] = LARGE
        hub.stall_after = 4 * MIB
        both = [sidecar.start(hub, *PULL) for _ in range(2)]
        assert hub.stalled.wait(30)
        wait_until(lambda: hub.requests.count(f"/owner/name/resolve/{COMMIT}/model.safetensors") >= 2, "both")
        hub.flow.set()
        answers = [json.loads(process.communicate(timeout=60)[0]) for process in both]
        assert len(hub.downloads("model.safetensors")) == 1
    assert [weights(answer) == LARGE for answer in answers] == [True, True]


def test_token_goes_to_the_hub_and_nowhere_else(sidecar: Sidecar) -> None:
    token = "hf_verysecret"  # noqa: S105 - made up
    with FakeHub() as hub:
        hub.files["model.safetensors"] = LARGE
        for command in (("prepare", *PULL[2:]), PULL, FIND, ("models", "list")):
            _, answer, stderr = sidecar.run(hub, *command, HF_TOKEN=token)
            assert token not in json.dumps(answer) + stderr
        asked = [request for request in hub.asked if request.path != "/"]
    of_hub = [request.authorization for request in asked if request.host.startswith("127.0.0.1")]
    assert set(of_hub) == {f"Bearer {token}"}
    of_others = [request.authorization for request in asked if request.host.startswith("localhost")]
    assert set(of_others) == {None}


def test_token_that_no_header_can_hold_is_not_quoted(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        exit_code, answer, stderr = sidecar.run(hub, *PULL, HF_TOKEN="hf_very\u00e9secret")  # noqa: S106
    assert exit_code == 78
    assert "secret" not in json.dumps(answer) + stderr


def test_cache_is_where_its_variables_say(sidecar: Sidecar, tmp_path: Path) -> None:
    with FakeHub() as hub:
        assert Path(sidecar.prepare(hub)["path"]).is_relative_to(tmp_path / "home" / "hub")
        path = Path(sidecar.prepare(hub, HF_HUB_CACHE=str(tmp_path / "other"))["path"])
    assert path.is_relative_to(tmp_path / "other")


def test_cache_that_cannot_be_written_is_said(sidecar: Sidecar, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with FakeHub() as hub:
        message = sidecar.error(hub, "cache_not_writable", *PULL, HF_HUB_CACHE=str(tmp_path / "file" / "hub"))
    assert f"`{tmp_path}/file/hub`: Not a directory" in message
    assert "HF_HOME" in message


def test_full_disk_is_said(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        hub.files["model.safetensors"] = LARGE
        sha256 = next(
            iter(hub.answer("/api/models/owner/name/tree/main").body.decode().split('"lfs": {"oid": "')[1:])
        )
        blobs = sidecar.repository / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{sha256[:64]}.incomplete").symlink_to("/dev/full")
        assert "No space left on device" in sidecar.error(hub, "cache_not_writable", *PULL)


SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def sharded(hub: FakeHub) -> None:
    del hub.files["model.safetensors"]
    hub.files.update({name: name.encode() * MIB for name in SHARDS})
    hub.files[INDEX] = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}).encode()


@pytest.mark.parametrize("is_listed", [True, False])
def test_checkpoint_of_which_a_shard_is_missing_is_completed(sidecar: Sidecar, is_listed: bool) -> None:
    with FakeHub() as hub:
        sharded(hub)
        answer = sidecar.prepare(hub)
        assert [weights(answer, name) == hub.files[name] for name in SHARDS] == [True, True]
        shard = Path(answer["path"]) / SHARDS[1]
        shard.resolve().unlink()
        shard.unlink()
        if not is_listed:
            (sidecar.repository / "trees" / f"{COMMIT}.json").unlink()
        sidecar.error(None, "not_downloaded", *FIND)
        sidecar.error(None, "hub_unreachable")
        assert sidecar.prepare(hub) == answer
        assert weights(answer, SHARDS[1]) == hub.files[SHARDS[1]]
        assert [len(hub.downloads(name)) for name in SHARDS] == [1, 2]
        assert len(hub.downloads("config.json")) == 1


def test_shard_that_the_repository_lacks_is_said(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        sharded(hub)
        del hub.files[SHARDS[1]]
        assert f"no `{SHARDS[1]}`, which `{INDEX}` names" in sidecar.error(hub, "bad_model")


def test_what_another_program_left_half_in_the_cache_is_completed_where_the_hub_is_there(
    sidecar: Sidecar,
) -> None:
    with FakeHub() as hub:
        hub.files["1_Pooling/config.json"] = b'{"pooling_mode_cls_token": true}'
        answer = sidecar.prepare(hub)
        pooling = Path(answer["path"]) / "1_Pooling" / "config.json"
        pooling.unlink()
        (sidecar.repository / "trees" / f"{COMMIT}.json").unlink()
        assert sidecar.prepare(None) == {
            **answer,
            "downloaded": False,
            "size_bytes": answer["size_bytes"] - 32,
        }
        hub.move({**hub.files, "model.safetensors": b"new"})
        assert sidecar.prepare(hub) == answer
        assert pooling.is_file()


def test_revision_stays_the_commit_that_it_was_until_it_is_pulled_again(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        first = sidecar.prepare(hub)
        assert first["revision"] == COMMIT
        hub.move({**hub.files, "model.safetensors": b"new"})
        asked = len(hub.asked)
        assert sidecar.prepare(hub) == {**first, "downloaded": False}
        assert sidecar.prepare(hub, "--revision", "main") == {**first, "downloaded": False}
        assert len(hub.asked) == asked
        second = sidecar.good(hub, *PULL)
        assert (second["revision"], second["downloaded"], weights(second)) == (NEXT_COMMIT, True, b"new")
        assert sidecar.good(hub, *PULL) == {**second, "downloaded": False}
        found = {**second, "downloaded": False}
        assert sidecar.good(None, *FIND) == found
        assert sidecar.prepare(None) == {**found, "weights_bytes": len(b"new"), "warnings": []}
        assert sidecar.prepare(None, "--revision", COMMIT) == {**first, "downloaded": False}


def test_pull_that_was_cut_off_leaves_the_old_commit_in_use(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        first = sidecar.prepare(hub)
        hub.move({**hub.files, "model.safetensors": LARGE})
        hub.stall_after = 12 * MIB
        process = sidecar.start(hub, *PULL)
        assert hub.stalled.wait(30)
        process.kill()
        process.communicate()
        hub.flow.set()
        assert sidecar.prepare(None) == {**first, "downloaded": False}
        assert weights(sidecar.good(hub, *PULL)) == LARGE


def test_tag_and_commit_are_revisions(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        hub.move({**hub.files, "model.safetensors": b"new"})
        hub.repositories["owner/name"].refs["refs/pr/1"] = COMMIT
        assert sidecar.prepare(hub, "--revision", "refs/pr/1")["revision"] == COMMIT
        assert sidecar.prepare(hub)["revision"] == NEXT_COMMIT
        assert sidecar.prepare(None, "--revision", "refs/pr/1")["revision"] == COMMIT
        assert sidecar.prepare(None, f"--revision={COMMIT}")["revision"] == COMMIT
        assert "at revision `v1`" in sidecar.error(None, "not_downloaded", *FIND, "--revision", "v1")


@pytest.mark.parametrize("revision", ["", "../main", "/etc", "a//b", "-x", "a\nb", "."])
def test_revision_that_would_be_another_path_is_refused(sidecar: Sidecar, revision: str) -> None:
    assert "cannot be a revision" in sidecar.error(None, "model_not_found", *FIND, f"--revision={revision}")


def test_directory_has_no_revision(sidecar: Sidecar, tmp_path: Path) -> None:
    message = sidecar.error(None, "no_revision", "prepare", "--model", str(tmp_path), "--revision", "v1")
    assert message == f"`{tmp_path}` is a directory, which has no revision `v1`"


def test_pull_needs_the_hub(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        sidecar.prepare(hub)
        assert "HF_HUB_OFFLINE" in sidecar.error(hub, "hub_unreachable", *PULL, HF_HUB_OFFLINE="1")
    assert f"{CLOSED} cannot be reached" in sidecar.error(None, "hub_unreachable", *PULL)


@pytest.mark.parametrize("command", [("prepare", *PULL[2:]), PULL])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    sidecar: Sidecar, command: tuple[str, ...], is_terminal: bool
) -> None:
    with FakeHub() as hub:
        hub.files["model.safetensors"] = LARGE
        if not is_terminal:
            assert sidecar.run(hub, *command)[2] == ""
            return
        ours, theirs = pty.openpty()
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
        process = sidecar.start(hub, *command, stderr=theirs)
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:
                break  # Linux says so when nobody is left at the other end
        os.close(ours)
        stdout, _ = process.communicate(timeout=60)
        assert weights(json.loads(stdout)) == LARGE
    assert b"model.safetensors" in shown
    assert b"100%" in shown


def test_list_has_the_known_models_and_what_else_is_whole_in_the_cache(sidecar: Sidecar) -> None:
    with FakeHub() as hub:
        hub.repositories["mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ"] = hub.repositories["owner/name"]
        _, before, _ = sidecar.run(None, "models", "list")
        answer = sidecar.prepare(hub)
        sidecar.good(hub, "models", "pull", "--model", "qwen3-0.6b-4bit")
        hub.move({**hub.files, "model.safetensors": b"new"})
        sidecar.good(hub, *PULL)
        sidecar.good(hub, *PULL, "--revision", NEXT_COMMIT)
    (sidecar.cache / "models--half--there" / "snapshots" / COMMIT).mkdir(parents=True)
    _, after, _ = sidecar.run(None, "models", "list")
    assert [(model["name"], model["state"]) for model in before] == [
        ("qwen3-0.6b-4bit", "not_downloaded"),
        ("all-minilm-l6-v2", "ready"),
    ]
    assert [(model["name"], model["commit"], model["revisions"]) for model in after] == [
        ("qwen3-0.6b-4bit", COMMIT, ["main"]),
        ("all-minilm-l6-v2", None, []),
        ("owner/name", NEXT_COMMIT, ["main"]),
        ("owner/name", COMMIT, []),
    ]
    assert after[3] == {
        "name": "owner/name",
        "repository": "owner/name",
        "dimension": None,
        "pooling": None,
        "note": "",
        "state": "ready",
        "revisions": [],
        "commit": COMMIT,
        "size_bytes": answer["size_bytes"],
        "path": answer["path"],
        "refusal": None,
    }
    assert before[0]["dimension"] == 1024
    assert before[0]["pooling"] == "last"


@pytest.mark.parametrize("commit", ["../../../../escaped", "main", "0" * 39, "0" * 40 + "/..", "A" * 40])
def test_hub_that_names_no_commit_writes_nothing(sidecar: Sidecar, commit: str) -> None:
    with FakeHub() as hub:
        hub.move(hub.files, commit)
        assert "does not say which commit" in sidecar.error(hub, "hub_unreachable")
        assert not hub.downloads("model.safetensors")
    assert not list(sidecar.cache.glob("models--*"))


@pytest.mark.parametrize(
    "name", ["../../../../../victim.json", "/victim.json", "a/../victim.json", "a\\b.json"]
)
def test_hub_that_lists_impossible_names_reaches_no_file_outside(
    sidecar: Sidecar, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim.json"
    victim.write_text("precious")
    name = str(victim) if name.startswith("/") else name
    with FakeHub() as hub:
        sidecar.good(hub, *PULL)
        hub.files[name] = b"{}"
        assert "impossible name" in sidecar.error(hub, "bad_model", *PULL)
    assert victim.read_text() == "precious"


def test_password_in_the_address_of_the_hub_is_not_shown(sidecar: Sidecar) -> None:
    for endpoint in ("http://user:s3cret@127.0.0.1:9", "http://user:s3cret@:9", "user:s3cret@"):
        assert "s3cret" not in sidecar.error(None, "hub_unreachable", HF_ENDPOINT=endpoint)
