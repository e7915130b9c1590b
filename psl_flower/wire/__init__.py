"""Communication across the cut: codecs, frames, streams and the Lower's exchange endpoint."""
