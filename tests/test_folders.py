"""One run at a time in a folder, and a run that was killed stands in nobody's way."""

import contextlib
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
from painted import make_kitti
from running import call
from small import CONFIG, FLAGS, lively_model

import cli
from data.io import lock as folders
from data.io.lock import sole_writer
from model import checkpoint as checkpoints

ALONE = SimpleNamespace(is_main_process=True, num_processes=1)


@contextlib.contextmanager
def holder(folder, with_child=False):
    """Another process that holds a folder; with a child that lives on, as a loader process does for a moment."""
    ready, children = multiprocessing.get_context("fork").Event(), multiprocessing.SimpleQueue()

    def target():
        with sole_writer(folder, "--results_folder", ALONE):
            if with_child and (child := os.fork()) == 0:
                time.sleep(60)
            children.put(child if with_child else None)
            ready.set()
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    assert ready.wait(30)
    child = children.get()
    yield process
    process.kill()
    process.join()
    if child:
        os.kill(child, 0)  # it lived on
        os.kill(child, signal.SIGKILL)


def held(folder):
    with contextlib.suppress(cli.UsageError), sole_writer(folder, "--results_folder", ALONE):
        return False
    return True


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    with holder(tmp_path) as process:
        said = rf"in use by another run \(process {process.pid} on .*name another folder by --results_folder$"
        with pytest.raises(cli.UsageError, match=said), sole_writer(tmp_path, "--results_folder", ALONE):
            pass
        assert not held(tmp_path.parent)
    assert not held(tmp_path)


@pytest.mark.parametrize("with_child", [False, True])
def test_a_killed_run_holds_nothing(tmp_path, with_child):
    with holder(tmp_path, with_child) as process:
        os.kill(process.pid, signal.SIGKILL)
        begin = time.monotonic()
        assert (tmp_path / folders.NAME).exists() and not held(tmp_path)
        assert time.monotonic() - begin < folders.PATIENCE


def test_nothing_is_left_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path, "--results_folder", ALONE):
        assert [p.name for p in tmp_path.iterdir()] == [folders.NAME]
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_who_waited_for_a_lock_that_was_removed_takes_the_new_one(tmp_path, monkeypatch):
    """Between opening the file and locking it, the run before ends and another one begins."""
    import fcntl

    real, calls = fcntl.lockf, []

    def slow(file, how):
        if not calls:
            (tmp_path / folders.NAME).unlink()
            (tmp_path / folders.NAME).write_text("another run's")
        calls.append(file.fileno())
        real(file, how)

    monkeypatch.setattr(fcntl, "lockf", slow)
    with sole_writer(tmp_path, "--results_folder", ALONE):
        assert len(calls) == 2 and str(os.getpid()) in (tmp_path / folders.NAME).read_text()


def test_a_file_system_without_locks_stops_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    assert not held(tmp_path)


def test_a_second_training_and_a_second_inference_are_refused_in_a_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    frames = tmp_path / "kitti" / "video_sequence" / "train"
    make_kitti(frames, numbers=range(3))
    checkpoints.save(
        tmp_path / "a.pt",
        {"format": checkpoints.FORMAT, "config": CONFIG.to_dict(), "weights": lively_model().state_dict()},
    )
    train = ("train", *FLAGS, "--data_root", tmp_path / "kitti", "--validate_videos", 0, "--steps", 1)
    infer = ("inference", "--input_folder", frames, "--checkpoint", tmp_path / "a.pt", "--device", "cpu", "--quiet")
    for command, flag in ((train, "--results_folder"), (infer, "--output_folder")):
        folder = tmp_path / flag
        folder.mkdir()
        with holder(folder):
            result = call(capfd, *command, flag, folder)
            assert result.status == 2 and "in use by another run" in result.message and flag in result.message
            assert [p.name for p in folder.iterdir()] == [folders.NAME]
