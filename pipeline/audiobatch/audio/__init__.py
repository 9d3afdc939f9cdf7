"""Sound in and out: prepare recordings for the service; check and finish its replies.

    wav                 the WAV container: where its samples are, true sizes, bare samples as a file
    decode, containers, channels    any recording as a stream of blocks
    levels, measure     levels, silence and duration; what a listener would want to know of a reply
    probe, probe_pool, probe_worker    what a recording is, or why it is refused; on all cores
    trim, split, join   silences shortened, long recordings in parts, their transcripts and subtitles
    convert, encode     what is sent; formats that the service does not make
    clips, finish       replies edited: joined, trimmed, brought to a loudness, faded
    codec_check         whether this installation's decoders and encoders work

A block is always frames x channels of float32 at full scale ±1. Recordings are never held whole; replies,
which are short, are.
"""
