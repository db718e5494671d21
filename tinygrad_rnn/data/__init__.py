"""Text to symbols to batches: sources, vocabularies, embedded corpora, data sets and streams."""

from __future__ import annotations

from tinygrad_rnn.data.batches import Streams as Streams
from tinygrad_rnn.data.batches import fitted_streams as fitted_streams
from tinygrad_rnn.data.compressed import COMPRESSED as COMPRESSED
from tinygrad_rnn.data.corpora import Corpus as Corpus
from tinygrad_rnn.data.corpora import CorpusText as CorpusText
from tinygrad_rnn.data.corpora import Dataset as Dataset
from tinygrad_rnn.data.corpora import TextStatistics as TextStatistics
from tinygrad_rnn.data.corpora import corpora as corpora
from tinygrad_rnn.data.corpora import corpus_chunks as corpus_chunks
from tinygrad_rnn.data.corpora import load_dataset as load_dataset
from tinygrad_rnn.data.corpora import register_dataset as register_dataset
from tinygrad_rnn.data.corpora import text_statistics as text_statistics
from tinygrad_rnn.data.text import Source as Source
from tinygrad_rnn.data.text import open_sources as open_sources
from tinygrad_rnn.data.text import read_byte_chunks as read_byte_chunks
from tinygrad_rnn.data.text import read_chunks as read_chunks
from tinygrad_rnn.data.text import read_text as read_text
from tinygrad_rnn.data.tokens import Decoder as Decoder
from tinygrad_rnn.data.tokens import Vocabulary as Vocabulary
from tinygrad_rnn.data.tokens import build_vocabulary as build_vocabulary
from tinygrad_rnn.data.tokens import count_symbols as count_symbols
from tinygrad_rnn.data.tokens import extend_vocabulary as extend_vocabulary
from tinygrad_rnn.data.tokens import split_words as split_words
