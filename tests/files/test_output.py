"""Files are written whole or not at all: on errors, on Ctrl-C, on full disks, where writing is not allowed."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slimc.errors import OutputError
from slimc.files.output import check_writable, replacing, scratch
from tests.command_line import snapshot


def test_all_targets_are_replaced_together(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("old")
    with replacing(first, second) as (one, two):
        one.write_text("new a")
        two.write_text("new b")
        assert first.read_text() == "old"
        assert not second.exists()
    assert snapshot(tmp_path) == {"a": b"new a", "b": b"new b"}


def test_temporaries_have_the_names_of_their_targets_on_the_same_disk(tmp_path):
    with replacing(tmp_path / "model.onnx", tmp_path / "model.onnx.data") as (one, two):
        assert (one.name, two.name) == ("model.onnx", "model.onnx.data")
        assert one.parent == two.parent
        assert one.parent.parent == tmp_path


def test_a_target_that_is_not_written_belonged_to_what_is_replaced(tmp_path):
    (tmp_path / "stale.data").write_text("old")
    with replacing(tmp_path / "model", tmp_path / "stale.data") as (one, _):
        one.write_text("new")
    assert snapshot(tmp_path) == {"model": b"new"}


def test_files_get_the_permissions_that_the_user_asked_for(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "model") as (one,):
            one.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(143), MemoryError()])
def test_whatever_goes_wrong_nothing_is_written(tmp_path, error):
    (tmp_path / "a").write_text("old")
    before = snapshot(tmp_path)
    with pytest.raises(type(error)), replacing(tmp_path / "a", tmp_path / "b") as (one, two):
        one.write_text("new")
        two.write_text("half of")
        raise error
    assert snapshot(tmp_path) == before


def test_an_error_of_the_operating_system_is_one_line(tmp_path):
    with pytest.raises(OutputError, match="a: cannot be written: No space left on device"), replacing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("threads", [0, 1])
def test_an_interrupt_while_renaming_waits_until_all_is_renamed(tmp_path, threads):
    """Before every rename the process interrupts itself, alone or beside a thread that takes signals as well."""
    script = f"""
import os, signal, threading
from pathlib import Path
from slimc.files.output import replacing
here, rename = Path({str(tmp_path)!r}), Path.replace
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

for _ in range({threads}):
    threading.Thread(target=threading.Event().wait, daemon=True).start()

def interrupted_rename(source, target):
    os.kill(os.getpid(), signal.SIGINT)
    return rename(source, target)

with replacing(here / "a", here / "b") as (one, two):
    one.write_text("new a")
    two.write_text("new b")
    Path.replace = interrupted_rename
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in outcome.stderr
    assert snapshot(tmp_path) == {"a": b"new a", "b": b"new b"}


@pytest.mark.parametrize("function", ["tempfile.mkdtemp", "shutil.rmtree"])
@pytest.mark.parametrize("threads", [0, 1])
def test_an_interrupt_while_the_temporary_directory_comes_or_goes_leaves_none(tmp_path, function, threads):
    script = f"""
import os, shutil, signal, tempfile, threading
from pathlib import Path
from slimc.files.output import replacing
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
for _ in range({threads}):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
original = {function}

def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    result = original(*arguments, **options)
    os.kill(os.getpid(), signal.SIGINT)
    return result

{function} = interrupted
with replacing(Path({str(tmp_path)!r}, "a")) as (one,):
    one.write_text("new")
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in outcome.stderr
    assert set(snapshot(tmp_path)) <= {"a"}


def test_a_directory_is_no_output(tmp_path):
    with pytest.raises(OutputError, match="is a directory; expected a file name"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match=r"the directory .*missing does not exist"):
        check_writable(tmp_path / "missing" / "a")


def test_a_place_where_even_root_cannot_write_is_an_output_error():
    with pytest.raises(OutputError, match=r"/proc/model\.onnx: "), replacing(Path("/proc/model.onnx")) as (one,):
        one.write_text("new")


NOBODY = 65534


def test_a_directory_without_permission_is_an_output_error(tmp_path):
    """As a user who is not root, to whom permissions apply."""
    script = f"""
import os
from pathlib import Path
from slimc.errors import OutputError
from slimc.files.output import replacing
if os.geteuid() == 0:
    os.setgid({NOBODY})
    os.setuid({NOBODY})
try:
    with replacing(Path("/", "model.onnx")) as (one,):
        one.write_text("new")
except OutputError as error:
    print(error)
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout == "/model.onnx: the directory / is not writable\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_an_output_error_and_keeps_what_was_there(small_disk):
    (small_disk / "a").write_text("old")
    with pytest.raises(OutputError, match="a: cannot be written: No space left"), replacing(small_disk / "a") as (one,):
        one.write_bytes(bytes(1 << 20))
    assert snapshot(small_disk) == {"a": b"old"}


def test_a_file_size_limit_is_an_output_error_and_keeps_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # so Python starts: writing fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with (
            pytest.raises(OutputError, match="a: cannot be written: File too large"),
            replacing(tmp_path / "a") as (one,),
        ):
            one.write_bytes(bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert snapshot(tmp_path) == {"a": b"old"}


class TestLinks:
    def test_what_a_link_leads_to_is_replaced_and_the_link_stays(self, tmp_path):
        (tmp_path / "store").mkdir()
        real, link = tmp_path / "store" / "real.onnx", tmp_path / "m.onnx"
        real.write_text("old")
        link.symlink_to(real)
        with replacing(link, tmp_path / "m.npz") as (model, reference):
            assert model.parent.parent == real.parent  # the same disk as what is replaced
            assert reference.parent.parent == tmp_path
            model.write_text("new")
            reference.write_text("reference")
        assert link.is_symlink()
        assert (real.read_text(), (tmp_path / "m.npz").read_text()) == ("new", "reference")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["m.npz", "m.onnx", "real.onnx", "store"]

    def test_a_link_to_a_file_that_is_still_to_be_made_makes_it(self, tmp_path):
        link = tmp_path / "m.onnx"
        link.symlink_to("real.onnx")
        with replacing(link) as (temporary,):
            temporary.write_text("new")
        assert link.is_symlink()
        assert (tmp_path / "real.onnx").read_text() == "new"

    def test_an_error_leaves_link_and_file_alone(self, tmp_path):
        real, link = tmp_path / "real.onnx", tmp_path / "m.onnx"
        real.write_text("old")
        link.symlink_to(real)
        with pytest.raises(ValueError, match="halfway"), replacing(link) as (temporary,):
            temporary.write_text("new")
            raise ValueError("halfway")
        assert (link.is_symlink(), real.read_text()) == (True, "old")

    def test_a_circle_and_a_missing_directory_are_refused(self, tmp_path):
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(OutputError, match="is a link"):
            check_writable(tmp_path / "a")
        (tmp_path / "c").symlink_to(tmp_path / "no" / "file")
        with pytest.raises(OutputError, match=r"a link to .*no/file\): the directory .* does not exist"):
            check_writable(tmp_path / "c")


def test_what_is_no_regular_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        with pytest.raises(OutputError, match="a pipe, a socket or a device"), replacing(path):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


class TestScratch:
    def test_it_is_gone_afterwards(self):
        with scratch() as directory:
            (directory / "file").write_text("content")
        assert not directory.exists()

    def test_no_room_is_one_line_that_says_where(self, monkeypatch, tmp_path):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(OutputError, match=rf"scratch space in {tmp_path}.*let TMPDIR name"), scratch():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert snapshot(tmp_path) == {}

    def test_a_directory_that_is_not_there_is_said(self, monkeypatch, tmp_path):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        with pytest.raises(OutputError, match="no scratch space: No such file or directory"), scratch():
            pass

    def test_other_errors_are_not_ours_to_explain(self, tmp_path):
        with pytest.raises(FileNotFoundError), scratch():
            (tmp_path / "missing").read_text()
        with pytest.raises(PermissionError), scratch():
            raise PermissionError(errno.EACCES, "denied", str(tmp_path / "model"))
