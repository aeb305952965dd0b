"""What is refused before any work, and what is touched: nothing. Writing itself is tested with what is written."""

import pytest

from forcing_kv.errors import OutputError
from forcing_kv.output_files import check_work_folder


def check(folder, *, resume=False, overwrite=False):
    check_work_folder(folder, what="comparison", resume=resume, overwrite=overwrite)


def test_folders_of_long_runs(tmp_path):
    check(tmp_path)
    check(tmp_path / "new" / "one")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="exists: go on with an unfinished comparison with --resume, replace it"):
        check(tmp_path)
    check(tmp_path, resume=True)
    check(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match=r"--resume goes on with the comparison in .*: give one"):
        check(tmp_path, resume=True, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        check(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        check(tmp_path / "file" / "below")
