"""Which files are audio by the endings of their names, and what decodes them."""

import shutil
from typing import Literal

# What libsndfile decodes by itself. A raw file says neither its rate nor its type, and a Sound
# Designer file keeps them in a second file.
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
# Ending to what decodes it.
DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(_FFMPEG.split(", "), "ffmpeg"),
    **dict.fromkeys(_LIBSNDFILE.split(", "), "libsndfile"),
}


def decoder_of(name: str) -> Decoder | None:
    """Returns what decodes a file of this name, whether installed or not; None if it is no audio."""
    return DECODERS.get(name.rpartition(".")[2].lower())


def has_ffmpeg() -> bool:
    """Tells whether the program ffmpeg is installed."""
    return shutil.which("ffmpeg") is not None
