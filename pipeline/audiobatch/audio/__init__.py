"""Sound in and out: recordings made ready for the service, replies checked and finished.

    riff, wav           the WAV container: where the samples are, true sizes, bare samples as a file
    sound, decode, ffmpeg, promises, ogg, channels    any recording as a stream of blocks
    levels, measure     how loud, how silent, how long: from samples
    probe, probe_pool, probe_worker, hashing    what a recording is, or why it is refused; on all cores
    timeline, trim, split, join    long recordings in parts, silences shortened, words put together again
    convert, encode     what is sent; and formats that the service does not make
    checks, wording     what a listener would want to know of a reply
    clips, loudness, finish    replies edited: joined, trimmed, as loud as wanted, faded

A block is always frames x channels of float32 at full scale +-1. Recordings are never held whole; replies,
which are short, are.
"""
