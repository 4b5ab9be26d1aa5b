"""The parts that decoders are written from: nodes over weights that a source gives."""
