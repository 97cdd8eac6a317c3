"""Attention decoders at run time: the network, rescoring of CTC's texts, and a search of its own."""
