"""Pictures for int8: always the same ones of a folder, and no more than are needed."""

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.datasets import calibration
from van_classification_tensorflow.datasets.calibration import calibration_of, check_pictures
from van_classification_tensorflow.spec.preprocessing import Preprocessing

RGB = Preprocessing(16, 1.0, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def folder(tmp_path):
    for i in range(9):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (20, 24), (i, 0, 0)).save(tmp_path / f"{i % 2}" / f"{i}.png")
    return tmp_path


def test_a_folder(folder, monkeypatch):
    found = calibration_of(folder, RGB)
    assert found.crops.shape == (9, 16, 16, 3)
    assert found.crops.dtype == np.uint8
    assert sorted(found.crops[:, 0, 0, 0]) == list(range(9))
    assert str(found) == f"9 pictures of {folder} (so few say little)"
    batches = list(found.one_by_one())
    assert [one.shape for one in batches] == [(1, 16, 16, 3)] * 9
    np.testing.assert_allclose(batches[3], RGB.normalise(found.crops[3:4]))
    monkeypatch.setattr(calibration, "CALIBRATION", 4)
    few = calibration_of(str(folder), RGB, workers=2)
    np.testing.assert_array_equal(few.crops, found.crops[:4])
    assert few.digest == calibration_of(folder, RGB).digest != found.digest


def test_what_cannot_be_read_is_counted(folder):
    (folder / "broken.png").write_bytes(b"\x89PNG no")
    found = calibration_of(folder, RGB)
    assert str(found) == f"9 pictures of {folder} (1 cannot be read, so few say little)"
    (folder / "gone.png").symlink_to("nowhere")
    assert calibration_of(folder, RGB).unreadable == 2
    with pytest.raises(ValueError, match=r"that can be read\. .* because of: .* allowed: 9"):
        calibration_of(folder, RGB, max_pixels=9)


def test_others_are_taken_for_those_that_cannot_be_read(folder, monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION", 6)
    for i in range(20):
        (folder / f"broken{i}.png").write_bytes(b"\x89PNG no")
    found = calibration_of(folder, RGB)
    assert len(found.crops) == 6 < len(found.crops) + found.unreadable <= 24
    np.testing.assert_array_equal(found.crops, calibration_of(folder, RGB).crops)


def test_the_bundled_digits():
    found = calibration_of("digits", Preprocessing(32, 1.0, "box", (0.5,), (0.5,)))
    assert found.crops.shape == (256, 32, 32, 1)
    assert str(found) == "256 pictures of the bundled digits"
    check_pictures("digits", "calibration")


def test_what_is_no_folder_of_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`calibration` must be a folder .* calibration="):
        check_pictures(tmp_path / "gone", "calibration")
    with pytest.raises(ValueError, match="`data` must have pictures"):
        check_pictures(tmp_path, "data")
