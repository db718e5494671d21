"""The command line of tinygrad_rnn: one file per command. The only package that imports click and rich."""
