"""Files and folders are there whole or not at all."""

import errno
import os
import threading

import pytest

from moe_adapt import files
from moe_adapt.errors import UserError
from moe_adapt.files import exclusively, free_for, new_folder, settle, write_file


def fill(folder, text):
    with new_folder(folder) as work:
        (work / "a.txt").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    fill(tmp_path / "x", "old")
    fill(tmp_path / "x", "new")
    assert (tmp_path / "x" / "a.txt").read_text() == "new" and names(tmp_path) == ["x"]


def test_a_block_that_fails_leaves_the_old(tmp_path):
    fill(tmp_path / "x", "old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "x") as work:
        (work / "a.txt").write_text("half")
        raise RuntimeError
    assert (tmp_path / "x" / "a.txt").read_text() == "old" and names(tmp_path) == ["x"]


def test_a_kill_between_two_renames_is_undone(tmp_path):
    fill(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.0123.old")
    (tmp_path / ".x.4567.tmp").mkdir()
    settle(tmp_path / "x")
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    fill(tmp_path / "x", "new")
    assert names(tmp_path) == ["x"]


def test_what_the_dead_left_is_removed_and_the_living_is_not(tmp_path):
    (tmp_path / ".a.txt.dead.tmp").write_text("half")
    with new_folder(tmp_path / "x") as work:
        write_file(tmp_path / "a.txt", "whole")
        write_file(work.parent / "b.txt", "whole")
        assert work.is_dir()
    assert names(tmp_path) == ["a.txt", "b.txt", "x"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_stays_a_link(tmp_path, kind):
    (tmp_path / "real").mkdir()
    if kind == "folder":
        (tmp_path / "link").symlink_to(tmp_path / "real")
        fill(tmp_path / "link", "new")
        assert (tmp_path / "real" / "a.txt").read_text() == "new"
    else:
        (tmp_path / "link").symlink_to(tmp_path / "real" / "a.txt")
        write_file(tmp_path / "link", "new")
        assert (tmp_path / "real" / "a.txt").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_one_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")

    def add():
        for _ in range(20):
            with exclusively(tmp_path / "count"), exclusively(tmp_path / "count"):
                write_file(tmp_path / "count", str(int((tmp_path / "count").read_text()) + 1), sync=False)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "count").read_text() == "80" and names(tmp_path) == ["count"]


def test_processes_wait_for_each_other(tmp_path):
    (tmp_path / "count").write_text("0")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(20):
                with exclusively(tmp_path / "count"):
                    write_file(tmp_path / "count", str(int((tmp_path / "count").read_text()) + 1), sync=False)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses(tmp_path, number):
    (tmp_path / "a").write_text("old")

    def refuse(file):
        file.write(b"half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=r"no space left|could not be written"):
        write_file(tmp_path / "a", refuse)
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_free_for(tmp_path):
    folder = tmp_path / "x"
    free_for(folder, "a trace", ["a.txt"], overwrite=False)
    fill(folder, "old")
    with pytest.raises(UserError, match="is not empty"):
        free_for(folder, "a trace", ["a.txt"], overwrite=False)
    free_for(folder, "a trace", ["a.txt"], overwrite=True, alone=True)
    with pytest.raises(UserError, match="holds other files than a trace"):
        free_for(folder, "a trace", ["b.txt"], overwrite=True)
    (folder / "thesis.doc").touch()
    free_for(folder, "a trace", ["a.txt"], overwrite=True)
    with pytest.raises(UserError, match=r"thesis.doc"):
        free_for(folder, "a trace", ["a.txt"], overwrite=True, alone=True)
    with pytest.raises(UserError, match="is a file"):
        free_for(folder / "a.txt", "a trace", [], overwrite=True)


def test_what_is_written_under_a_longer_name_is_nobody_elses_left_over(tmp_path):
    other = tmp_path / ".adapter.jsonl.0a1b2c3d.tmp"
    own = tmp_path / ".adapter.0a1b2c3d.tmp"
    other.write_text("a row")
    own.write_text("half an adapter")
    settle(tmp_path / "adapter")
    assert other.exists() and not own.exists()
