"""What stands on the screen while a model is fitted."""

import io

import pytest
from rich.console import Console

from van_classification_tensorflow.train.progress import FitProgress

LOGS = {
    "loss": 12.34567,
    "accuracy": 1.0,
    "val_loss": 10.5,
    "val_accuracy": 0.98765,
    "val_top5": 1.0,
    "average_loss": 0.25,
    "average_accuracy": 0.5,
    "average_top5": 1.0,
    "learning_rate": 1.25e-4,
}


def shown(
    width, epochs=310, terminal=True, logs=LOGS, rate=lambda: 12345.6, of_all=None, **options
):
    """All that is written in `epochs` of two batches each."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    progress = FitProgress(console, rate, epochs=of_all, **options)
    progress.set_params({"epochs": epochs, "steps": 2})
    with progress:
        progress.on_train_begin()
        for epoch in range(epochs):
            progress.on_epoch_begin(epoch)
            for batch in range(2):
                progress.on_train_batch_end(batch, logs)
                progress.bar.refresh()
            progress.on_epoch_end(epoch, logs)
    # Every state of the bar, one after the other.
    return file.getvalue().replace("\r", "\n").replace("\x1b[2K", "").replace("\x1b[1A", "")


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_fits_a_terminal(width):
    bars = [line for line in shown(width, lines=310).splitlines() if "left" in line]
    assert any("Epoch 310/310" in line for line in bars)
    for line in bars[1:]:
        assert "…" not in line
        assert "..." not in line
        assert len(line.rstrip()) <= width
    assert any("loss 12.3457  12345.6 images/s" in line for line in bars)


def test_an_epoch_that_is_gone_on_with_is_one_of_all():
    """`fit` is called for the rest of the first by itself."""
    lines = shown(80, epochs=1, terminal=False, of_all=4)
    assert "1/4" in lines
    assert "1/1" not in lines


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_for_each_epoch_stays(terminal):
    lines = [
        line
        for line in shown(80, terminal=terminal, lines=310).splitlines()
        if "/310" in line and "Epoch" not in line
    ]
    assert len(lines) == 310
    assert max(map(len, lines)) < 80
    figures = "12.3457 100.00%  10.5000  98.77%   0.2500  50.00%  1.3e-04 12345.6"
    assert lines[-1].endswith(f"  310/310  {figures}")


def test_columns_are_those_that_are_measured():
    text = shown(80, 3, terminal=False, logs={"loss": 1.0, "val_loss": 2.0}, rate=None)
    assert [line.split() for line in text.splitlines()] == [
        ["training", "validation"],
        ["epoch", "loss", "loss"],
        *([f"{i}/3", "1.0000", "2.0000"] for i in (1, 2, 3)),
    ]


def test_no_more_lines_than_asked_and_the_last_one():
    text = shown(80, 95, terminal=False, lines=10)
    epochs = [line.split()[0] for line in text.splitlines()[2:]]
    assert epochs[-1] == "95/95"
    assert len(epochs) <= 11
