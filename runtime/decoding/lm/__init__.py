"""Language models of words: built from text, kept in one file, and used by the beam search."""
