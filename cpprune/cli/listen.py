"""`cpprune listen`: continuous audio, classified while it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.cli.arguments import MODEL_HELP, VALUE_HELP, OneLineParser
from cpprune.cli.output import message
from shards.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cpprune.evaluation.listening import Moment
    from shards.audio.load import Clips

SHOWN = 3  # classes in a line
SHOWN_LIVE = 10
BAR = 40


def listen(argv: list[str]) -> int:
    """Name the scene of continuous audio, window by window, until it ends or Ctrl-C is pressed."""
    parser = OneLineParser(
        "cpprune listen",
        description="Name the scene of continuous audio: every hop, a window as long as a clip of "
        "training is classified, and the probabilities are smoothed over time. A terminal shows them "
        "live; elsewhere, each window is a line, with --json a JSON object.",
    )
    parser.add_argument("model", type=Path, help=MODEL_HELP)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", type=Path, help="audio file of any format, rate and length")
    source.add_argument(
        "--microphone",
        nargs="?",
        const="",
        metavar="NAME",
        help="name or number of a microphone (default: the system's)",
    )
    source.add_argument(
        "--raw",
        action="store_true",
        help="int16 samples from standard input, mono, at the model's sample rate",
    )
    parser.add_argument(
        "--hop", type=float, default=0.5, help="seconds from window to window (default: 0.5)"
    )
    parser.add_argument(
        "--smoothing",
        type=float,
        default=1.0,
        help="time constant of the moving average in seconds, 0 for none (default: 1)",
    )
    parser.add_argument("--value", help=VALUE_HELP)
    arguments = parser.parse_args(argv)
    if arguments.raw and (sys.stdin is None or sys.stdin.isatty()):
        what = "closed" if sys.stdin is None else "a terminal"
        raise UserError(
            f"--raw: standard input is {what}; pipe samples into it, such as those of arecord"
        )
    if not 0 <= arguments.smoothing <= 3600:
        raise UserError(f"--smoothing {arguments.smoothing:g}: must be from 0 to 3600 seconds")

    from cpprune.evaluation import live_audio
    from cpprune.evaluation.listening import Listener
    from cpprune.export.classifier import load_for_audio
    from shards.audio.load import BadFile, blocks

    model, rate = load_for_audio(arguments.model, arguments.value)
    hop = round(arguments.hop * rate) if 0 < arguments.hop <= 3600 else 0
    if hop < 1:
        raise UserError(f"--hop {arguments.hop:g}: must be from 1 sample to 3600 seconds")
    clipped = 0

    def recorded() -> Iterator[Clips]:
        nonlocal clipped
        for part in blocks(arguments.file, rate):
            clipped += part.clipped
            yield part.samples

    if arguments.file:
        audio, name = recorded(), str(arguments.file)
    elif arguments.raw:
        audio, name = live_audio.piped(sys.stdin.buffer), "standard input"
    else:
        audio, name = live_audio.microphone(arguments.microphone, rate), "the microphone"
    listener = Listener(model, hop, arguments.smoothing)
    endless = not arguments.file
    # Ctrl-C is how one stops to listen to what has no end.
    with suppress(*[KeyboardInterrupt] * endless), _shown(model.classes, arguments.json) as show:
        try:
            for moment in listener.listen(audio):
                show(moment)
        except BadFile as reason:
            raise UserError(f"{name}: {reason}") from reason
    if clipped:
        message(f"{name}: {clipped:,} of {listener.heard:,} samples clipped to full scale")
    if not listener.classified:
        message(f"{name}: stopped before the end of the first window: nothing classified")
    elif listener.heard < model.clip_shape[0]:
        message(f"{name}: shorter than a window: padded with silence")
    elif rest := listener.heard - listener.classified:
        message(f"{name}: {rest / rate:.2f} s after the last window not classified")
    return 0


@contextmanager
def _shown(classes: tuple[str, ...], as_json: bool) -> Iterator[Callable[[Moment], None]]:
    """Yield what shows a moment: live on a terminal, else as a line."""
    if as_json:
        yield lambda moment: print(_json_line(moment, classes), flush=True)
    elif sys.stdout.isatty():
        with _live(classes) as show:
            yield show
    else:
        yield lambda moment: print(_line(moment, classes), flush=True)


def _json_line(moment: Moment, classes: tuple[str, ...]) -> str:
    ranking = moment.probabilities.argsort()[::-1]
    return json.dumps(
        {
            "seconds": moment.seconds,
            "prediction": classes[ranking[0]],
            "probabilities": {classes[k]: float(moment.probabilities[k]) for k in ranking},
        }
    )


def _line(moment: Moment, classes: tuple[str, ...]) -> str:
    ranking = moment.probabilities.argsort()[::-1][:SHOWN]
    top = ", ".join(f"{classes[k]} {moment.probabilities[k]:.1%}" for k in ranking)
    return f"{moment.seconds:9.2f} s  {top}"


@contextmanager
def _live(classes: tuple[str, ...]) -> Iterator[Callable[[Moment], None]]:
    """Yield what draws the probabilities as bars, and leaves a line wherever the class changes."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    heard = ""

    def bars(probabilities: NDArray[np.float64]) -> Table:
        drawn = Table.grid(padding=(0, 2))
        best = probabilities.argsort()[::-1][:SHOWN_LIVE]
        for k in sorted(best):
            style = "bold" if k == best[0] else ""
            bar = ProgressBar(total=1, completed=probabilities[k], width=BAR)
            drawn.add_row(Text(classes[k], style), bar, Text(f"{probabilities[k]:6.1%}", style))
        return drawn

    with Live(refresh_per_second=10) as live:

        def show(moment: Moment) -> None:
            nonlocal heard
            name = classes[moment.probabilities.argmax()]
            if name != heard:
                live.console.print(Text(f"{moment.seconds:9.2f} s  {name}"))
                heard = name
            time = Text(f"{moment.seconds:9.2f} s", "dim")
            live.update(Group(Text(), bars(moment.probabilities), time))

        yield show
