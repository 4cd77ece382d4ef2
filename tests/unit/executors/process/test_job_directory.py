from __future__ import annotations

from pathlib import Path

import pytest

from executors.process import job_directory


def test_each_job_gets_a_directory_of_its_own_that_is_removed() -> None:
    with (
        job_directory.working_directory(None) as one,
        job_directory.working_directory(None) as other,
    ):
        assert one != other
        assert one.is_dir()
        (one / "below").mkdir()
        (one / "below" / "file").touch()
    assert not one.exists()
    assert not other.exists()


def test_only_the_owner_may_look_into_it() -> None:
    with job_directory.working_directory(None) as path:
        assert path.stat().st_mode & 0o777 == 0o700


def test_it_is_removed_after_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), job_directory.working_directory(None) as path:
        raise ZeroDivisionError
    assert not path.exists()


def test_a_configured_directory_stays(tmp_path: Path) -> None:
    with job_directory.working_directory(tmp_path) as path:
        assert path == tmp_path
    assert path.exists()


def test_a_directory_that_the_job_removed_itself_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with job_directory.working_directory(None) as path:
        path.rmdir()
    assert not caplog.records


def test_read_only_directories_are_removed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    inner = victim / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").touch(0o400)
    for path in (inner, inner.parent, victim):
        path.chmod(0o500)

    job_directory.remove(victim)

    assert not victim.exists()


def test_unlocking_follows_no_link(tmp_path: Path) -> None:
    outside, victim = tmp_path / "outside", tmp_path / "victim"
    outside.mkdir()
    outside.chmod(0o750)
    victim.mkdir()
    (victim / "link").symlink_to(outside)
    (victim / "sub").mkdir()
    (victim / "sub").chmod(0)

    job_directory.unlock(victim)

    assert outside.stat().st_mode & 0o777 == 0o750
    assert (victim / "sub").stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_removed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with job_directory.working_directory(None) as path:
        path.rmdir()
        path.touch()  # a file is no tree
    try:
        assert str(path) in caplog.text
        assert "could not be removed" in caplog.text
    finally:
        path.unlink()
