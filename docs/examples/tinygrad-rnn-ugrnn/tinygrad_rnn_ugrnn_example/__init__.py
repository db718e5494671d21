"""A cell of tinygrad_rnn, in ugrnn_example.py."""
