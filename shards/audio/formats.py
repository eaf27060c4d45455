"""File name extensions of audio, and the decoder of each."""

import shutil
from typing import Literal

# Decoded by libsndfile; except raw files, which do not contain sample rate and type, and Sound Designer
# files, which keep them in a second file.
_LIBSNDFILE = (
    "wav, wave, bwf, rf64, w64, wavex, aif, aiff, aifc, au, snd, caf, flac, ogg, oga, opus, mp3, mp2, "
    "svx, 8svx, voc, nist, sph, avr, htk, mat4, mat5, mpc2k, paf, pvf, ircam, sf, wve, xi"
)
_FFMPEG = (
    "m4a, m4b, mp4, aac, 3gp, mov, alac, wma, asf, webm, weba, mka, mkv, ac3, eac3, dts, amr, ape, "
    "wv, tta, mpc"
)
INSTALL = "install ffmpeg (apt install ffmpeg), or convert it to FLAC"

Decoder = Literal["libsndfile", "ffmpeg"]
# Decoder by extension.
DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(_FFMPEG.split(", "), "ffmpeg"),
    **dict.fromkeys(_LIBSNDFILE.split(", "), "libsndfile"),
}


def decoder_of(name: str) -> Decoder | None:
    """Returns the decoder of a file of this name, installed or not; None if it is not audio."""
    return DECODERS.get(name.rpartition(".")[2].lower())


def has_ffmpeg() -> bool:
    """Returns whether the program ffmpeg is installed."""
    return shutil.which("ffmpeg") is not None
