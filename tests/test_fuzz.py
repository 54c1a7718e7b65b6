"""Fifty damaged and hostile files; 500 are `python -m benchmarks.damage`."""

import warnings

import pytest

from benchmarks.damage import case, sound_files


@pytest.fixture(scope="module")
def files():
    return sound_files()


@pytest.mark.parametrize("number", range(50))
def test_a_damaged_file_ends_in_an_error_of_ours_or_in_what_is_stated(files, tmp_path, number):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case(number, 1, files, tmp_path)


def test_sound_files_are_read(files, tmp_path):
    from benchmarks.damage import read

    for number, (name, data) in enumerate(files.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        if name.endswith(".json"):
            (folder / "x.png").write_bytes(b"")
        (folder / name).write_bytes(data)
        read(folder / name)
