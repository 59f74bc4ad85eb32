"""What a slot fetches, and errors of the machine: they pass, and refuse no version."""

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models import registry, registry_files
from models.artifact import SERVED, SUMS, TRAINING_STATE, load_artifact
from models.errors import ArtifactError
from service import broken
from service.holder import Slot, outcome_of
from service.room import Room
from service.settings import Settings
from tests.artifacts import make_artifact
from tests.registries import Registry, register
from tests.runs import forked
from tests.servers import sign

OUT_OF_BOUNDS = 2
"""The version whose critic gives NaN."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("machine")
    home = Registry(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", home.uri)
        with home.running():
            for number in (1, OUT_OF_BOUNDS):
                register(folder, number, number == OUT_OF_BOUNDS)
            yield home


class Watched:
    """A slot with a cache of its own, and the outcomes of its attempts."""

    def __init__(self, source: str, cache: Path, **variables: str) -> None:
        self.cache = cache
        self.outcomes: list[str] = []
        settings = Settings.read(WGAN_CACHE=str(cache), **variables)
        self.room = Room(0)
        self.slot = Slot("tiny", "champion", source, settings, self.room, self.count)

    def count(self, model: str, role: str, outcome: str) -> None:
        self.outcomes.append(outcome)

    @property
    def version(self) -> str | None:
        return self.slot.served and self.slot.served.version


@pytest.fixture
def watched(home: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home.uri)
    monkeypatch.setattr("service.retries.FIRST_WAIT", 0.01)
    return Watched("tiny@1", tmp_path / "cache")


@contextlib.contextmanager
def limited(kind: int, to: int) -> Iterator[None]:
    """A limit of this process, for a while."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (to, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def recovers(watched: Watched) -> None:
    """What happened was told as an error of the machine; without it the version is served."""
    assert watched.outcomes == ["machine"]
    assert watched.slot.refused is None
    assert watched.version is None
    watched.slot.refresh()
    assert watched.outcomes == ["machine", "swapped"]
    assert watched.version == "tiny@1"


def test_a_disk_that_takes_no_file_passes(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    with limited(resource.RLIMIT_FSIZE, 1000):  # less than the weights
        watched.slot.refresh()
    assert "File too large" in caplog.text
    assert watched.slot.reachable is True, "the registry did answer"
    recovers(watched)


def test_a_cache_that_is_no_folder_passes(watched: Watched) -> None:
    watched.cache.mkdir()
    (watched.cache / "models").touch()
    watched.slot.refresh()
    (watched.cache / "models").unlink()
    assert watched.slot.reachable is True
    recovers(watched)


def test_too_few_file_descriptors_pass(watched: Watched) -> None:
    registry.resolve("tiny@1")  # so that its client is loaded
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with limited(resource.RLIMIT_NOFILE, lowest_free):
        watched.slot.refresh()
    assert watched.slot.reachable is not False
    recovers(watched)


def load_in_little_memory(arguments: list[str]) -> int:
    """Load a folder first with one megabyte, and then with what there is."""
    watched = Watched(arguments[0], Path(arguments[1]))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with limited(resource.RLIMIT_AS, pages * resource.getpagesize() + 2**20):
        watched.slot.refresh()
    assert watched.outcomes == ["machine"], watched.outcomes
    assert watched.slot.is_due, "an artifact folder is tried again too"
    watched.slot.refresh()
    assert watched.outcomes == ["machine", "swapped"], watched.outcomes
    assert not watched.slot.is_due
    return 0


def test_too_little_memory_passes(tmp_path: Path) -> None:
    """In a process of its own: one that lacked memory may compile no convolution ever after."""
    artifact = make_artifact(tmp_path / "artifact", critic={"width": 1024, "depth": 2})
    log = tmp_path / "log"
    done = forked(load_in_little_memory, [artifact, tmp_path / "cache"], log)
    done.join(100)
    assert done.exitcode == 0, log.read_text()[-2000:]


def test_no_room_for_a_thread_passes(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as Python says it

    with monkeypatch.context() as patch:  # the superuser has no limit that would do this
        patch.setattr(threading.Thread, "start", start)
        watched.slot.refresh()
    recovers(watched)


def test_what_is_served_is_recorded_as_soon_as_the_disk_allows(watched: Watched) -> None:
    cache = watched.slot.cache
    blocked = cache.folder / "current" / "folder"
    blocked.mkdir(parents=True)
    watched.slot.refresh()
    assert watched.version == "tiny@1"
    assert watched.outcomes == ["swapped", "machine"]
    blocked.rmdir()
    blocked.parent.rmdir()
    watched.slot.refresh()
    assert cache.last_good() == "1"
    assert watched.outcomes == ["swapped", "machine"]


def test_what_a_killed_download_left_goes(watched: Watched) -> None:
    left = watched.slot.cache.folder / "tmp-killed" / "artifact"
    left.mkdir(parents=True)
    watched.slot.refresh()
    assert watched.version == "tiny@1"
    assert not left.parent.exists()


def test_a_download_that_was_given_up_comes_to_nothing(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could replace what another worker uses: it does not hold the lock any more."""
    go_on, fetch = threading.Event(), registry_files.download

    def slowly(*given: Any) -> Path:
        go_on.wait()
        return fetch(*given)

    monkeypatch.setattr(registry_files, "download", slowly)
    monkeypatch.setattr("service.cache.DOWNLOAD_SECONDS", 0.01)
    watched.slot.refresh()
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "registry":
            thread.join()
    assert watched.outcomes == ["unreachable"]
    assert not (watched.slot.cache.folder / "1").exists()


def test_a_version_that_is_not_sound_is_refused_still(watched: Watched, tmp_path: Path) -> None:
    bad = Watched(f"tiny@{OUT_OF_BOUNDS}", tmp_path / "cache")
    for _ in range(2):
        bad.slot.refresh()
    assert bad.outcomes == ["refused"]
    assert bad.slot.refused == f"tiny@{OUT_OF_BOUNDS}"


def test_what_is_served_is_fetched_and_nothing_else(watched: Watched, home: Registry) -> None:
    watched.slot.refresh()
    assert watched.version == "tiny@1"
    fetched = {path.name for path in (watched.slot.cache.folder / "1").iterdir()}
    assert fetched == {*SERVED, SUMS}
    asked = [line for line in home.log.read_text().splitlines() if "GET" in line]
    assert any("generator.safetensors" in line for line in asked)
    assert not any(TRAINING_STATE in line for line in asked)
    served = watched.slot.served
    assert served
    assert served.model.digest == load_artifact(home.folder / "artifact1").digest
    assert TRAINING_STATE in {
        p.name for p in registry_files.download("tiny@1", watched.cache).iterdir()
    }


def test_a_version_with_a_file_missing_is_refused(watched: Watched, home: Registry) -> None:
    source = registry.client().get_model_version("tiny", "1").source
    (stored,) = (home.folder / "stored").glob(f"*/{source.split('/')[-3]}/artifacts/artifact")
    weights = (stored / "critic.safetensors").rename(home.folder / "away")
    try:
        watched.slot.refresh()
    finally:
        weights.rename(stored / "critic.safetensors")
    assert watched.outcomes == ["refused"]


def test_a_folder_without_its_training_state_is_served(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    (artifact / TRAINING_STATE).unlink()
    watched = Watched(str(artifact), tmp_path / "cache")
    watched.slot.refresh()
    assert watched.outcomes == ["swapped"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), "machine"),
        (torch.AcceleratorError("device-side assert triggered"), "machine"),
        # PyTorch has no type for these.
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "machine"),
        (RuntimeError("Found no NVIDIA driver on your system"), "machine"),
        (ArtifactError("out of memory/critic.safetensors: changed or truncated"), "refused"),
    ],
)
def test_errors_are_told_apart_by_type(error: Exception, outcome: str) -> None:
    assert outcome_of(error) == outcome


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_refuses_no_version(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    watched = Watched(str(artifact), tmp_path / "cache", WGAN_DEVICE="cuda")
    watched.slot.refresh()
    assert watched.outcomes == ["machine"]
    assert watched.slot.is_due


@pytest.mark.parametrize("says", ["size mismatch for out of memory", "cuda error"])
def test_weights_of_other_networks_refuse_a_version(tmp_path: Path, says: str) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    save_file({says: torch.zeros(2)}, artifact / "critic.safetensors")
    sign(artifact)
    watched = Watched(str(artifact), tmp_path / "cache")
    watched.slot.refresh()
    assert watched.outcomes == ["refused"]


# ---- memory lacked while kernels were compiled -------------------------------------------------


def compile_while_memory_lacks(_: list[str]) -> int:
    """Have PyTorch compile with ever more memory, until it compiles no more with all there is."""

    def forward(channels: int) -> RuntimeError | None:
        try:
            with torch.inference_mode():
                layer = torch.nn.ConvTranspose2d(channels, channels, 4, 2, 1)
                layer(torch.zeros(16, channels, 14, 14))
        except RuntimeError as error:
            return error
        return None

    assert forward(8) is None
    for step in range(30):
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        with limited(resource.RLIMIT_AS, held + 2**20 + step * 2**19):
            forward(96 + 8 * step)
        if error := forward(500 - step):  # memory is back, and the shape is another
            assert broken.is_broken(error), error
            again = forward(600 - step)
            assert again is not None
            assert broken.is_broken(again), again
            break
    return 0


def test_what_pytorch_raises_once_it_compiles_no_more_is_known(tmp_path: Path) -> None:
    ended = []
    for attempt in range(3):
        log = tmp_path / f"log{attempt}"
        done = forked(compile_while_memory_lacks, [], log)
        done.join(100)
        ended.append((done.exitcode, log.read_text()[-500:]))
        if done.exitcode == 0:
            return
        # That memory lacks may crash it too.
        assert done.exitcode in (-signal.SIGSEGV, -signal.SIGABRT), log.read_text()
    raise AssertionError(ended)


def test_only_what_pytorch_raises_then_is_known_whatever_it_led_to() -> None:
    def caused(error: Exception, by: Exception) -> Exception:
        error.__cause__ = by
        return error

    lack = RuntimeError(f"{broken.SAYS}, as memory lacked")
    assert broken.is_broken(lack)
    assert broken.is_broken(caused(ValueError("no score"), lack))
    for other in (
        ValueError(broken.SAYS),
        RuntimeError("CUDA out of memory"),
        caused(RuntimeError("no score"), OSError(broken.SAYS)),
    ):
        assert not broken.is_broken(other)


def test_a_worker_that_ends_is_told_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second signal would not wait for what is under way."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    monkeypatch.setattr(broken, "_is_ending", threading.Lock())
    try:
        for _ in range(3):
            broken.end_worker()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM]
    assert caplog.text.count("memory lacked") == 1


def compiles_no_more(*arguments: object, **options: object) -> torch.Tensor:
    raise RuntimeError("could not create a primitive")


def test_a_process_that_can_load_nothing_more_ends_unless_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = list[bool]()
    monkeypatch.setattr("service.holder.end_worker", lambda: ends.append(True))
    good = Watched(str(make_artifact(tmp_path / "good")), tmp_path / "cache")
    good.slot.refresh()
    assert good.outcomes == ["swapped"]
    watched = Watched(str(make_artifact(tmp_path / "artifact", seed=1)), tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv_transpose2d", compiles_no_more)
        watched.slot.refresh()
    assert (watched.outcomes, ends) == (["broken"], [True])
    assert watched.slot.is_due
    watched.slot.refresh()  # whoever compiled the same shape now might crash
    assert watched.outcomes == ["broken", "broken"]

    beside = Slot("tiny", "champion", watched.slot.source, Settings.read(), good.room, good.count)
    ends.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv_transpose2d", compiles_no_more)
        beside.refresh()
    assert (good.outcomes, ends) == (["swapped", "broken"], [])
