"""Every op, on arrays and on tensors alike. Array values are positional, configuration is by keyword or last."""

import typing as _typing

from tinygrad_rnn.ops.elementwise import abs as abs
from tinygrad_rnn.ops.elementwise import add as add
from tinygrad_rnn.ops.elementwise import astype as astype
from tinygrad_rnn.ops.elementwise import ceil as ceil
from tinygrad_rnn.ops.elementwise import clip as clip
from tinygrad_rnn.ops.elementwise import cos as cos
from tinygrad_rnn.ops.elementwise import div as div
from tinygrad_rnn.ops.elementwise import equal as equal
from tinygrad_rnn.ops.elementwise import exp as exp
from tinygrad_rnn.ops.elementwise import floor as floor
from tinygrad_rnn.ops.elementwise import floor_divide as floor_divide
from tinygrad_rnn.ops.elementwise import greater as greater
from tinygrad_rnn.ops.elementwise import greater_equal as greater_equal
from tinygrad_rnn.ops.elementwise import isfinite as isfinite
from tinygrad_rnn.ops.elementwise import isinf as isinf
from tinygrad_rnn.ops.elementwise import isnan as isnan
from tinygrad_rnn.ops.elementwise import less as less
from tinygrad_rnn.ops.elementwise import less_equal as less_equal
from tinygrad_rnn.ops.elementwise import log as log
from tinygrad_rnn.ops.elementwise import log1p as log1p
from tinygrad_rnn.ops.elementwise import logical_and as logical_and
from tinygrad_rnn.ops.elementwise import logical_not as logical_not
from tinygrad_rnn.ops.elementwise import logical_or as logical_or
from tinygrad_rnn.ops.elementwise import logical_xor as logical_xor
from tinygrad_rnn.ops.elementwise import maximum as maximum
from tinygrad_rnn.ops.elementwise import minimum as minimum
from tinygrad_rnn.ops.elementwise import mul as mul
from tinygrad_rnn.ops.elementwise import neg as neg
from tinygrad_rnn.ops.elementwise import not_equal as not_equal
from tinygrad_rnn.ops.elementwise import pow as pow
from tinygrad_rnn.ops.elementwise import relu as relu
from tinygrad_rnn.ops.elementwise import remainder as remainder
from tinygrad_rnn.ops.elementwise import rint as rint
from tinygrad_rnn.ops.elementwise import round as round
from tinygrad_rnn.ops.elementwise import sigmoid as sigmoid
from tinygrad_rnn.ops.elementwise import sign as sign
from tinygrad_rnn.ops.elementwise import sin as sin
from tinygrad_rnn.ops.elementwise import softplus as softplus
from tinygrad_rnn.ops.elementwise import sqrt as sqrt
from tinygrad_rnn.ops.elementwise import sub as sub
from tinygrad_rnn.ops.elementwise import tanh as tanh
from tinygrad_rnn.ops.elementwise import trunc as trunc
from tinygrad_rnn.ops.elementwise import where as where
from tinygrad_rnn.ops.functions import arccos as arccos
from tinygrad_rnn.ops.functions import arccosh as arccosh
from tinygrad_rnn.ops.functions import arcsin as arcsin
from tinygrad_rnn.ops.functions import arcsinh as arcsinh
from tinygrad_rnn.ops.functions import arctan as arctan
from tinygrad_rnn.ops.functions import arctan2 as arctan2
from tinygrad_rnn.ops.functions import arctanh as arctanh
from tinygrad_rnn.ops.functions import cosh as cosh
from tinygrad_rnn.ops.functions import erf as erf
from tinygrad_rnn.ops.functions import erfc as erfc
from tinygrad_rnn.ops.functions import exp2 as exp2
from tinygrad_rnn.ops.functions import expm1 as expm1
from tinygrad_rnn.ops.functions import gelu as gelu
from tinygrad_rnn.ops.functions import log2 as log2
from tinygrad_rnn.ops.functions import log10 as log10
from tinygrad_rnn.ops.functions import logaddexp as logaddexp
from tinygrad_rnn.ops.functions import sinh as sinh
from tinygrad_rnn.ops.functions import square as square
from tinygrad_rnn.ops.functions import tan as tan
from tinygrad_rnn.ops.index import argsort as argsort
from tinygrad_rnn.ops.index import embedding as embedding
from tinygrad_rnn.ops.index import getitem as getitem
from tinygrad_rnn.ops.index import scatter as scatter
from tinygrad_rnn.ops.index import sort as sort
from tinygrad_rnn.ops.linear import dot as dot
from tinygrad_rnn.ops.linear import einsum as einsum
from tinygrad_rnn.ops.linear import inner as inner
from tinygrad_rnn.ops.linear import kron as kron
from tinygrad_rnn.ops.linear import matmul as matmul
from tinygrad_rnn.ops.linear import outer as outer
from tinygrad_rnn.ops.linear import tensordot as tensordot
from tinygrad_rnn.ops.linear import vdot as vdot
from tinygrad_rnn.ops.loss import cross_entropy as cross_entropy
from tinygrad_rnn.ops.reduce import argmax as argmax
from tinygrad_rnn.ops.reduce import argmin as argmin
from tinygrad_rnn.ops.reduce import cumprod as cumprod
from tinygrad_rnn.ops.reduce import cumsum as cumsum
from tinygrad_rnn.ops.reduce import log_softmax as log_softmax
from tinygrad_rnn.ops.reduce import logsumexp as logsumexp
from tinygrad_rnn.ops.reduce import max as max
from tinygrad_rnn.ops.reduce import mean as mean
from tinygrad_rnn.ops.reduce import min as min
from tinygrad_rnn.ops.reduce import norm as norm
from tinygrad_rnn.ops.reduce import prod as prod
from tinygrad_rnn.ops.reduce import softmax as softmax
from tinygrad_rnn.ops.reduce import std as std
from tinygrad_rnn.ops.reduce import sum as sum
from tinygrad_rnn.ops.reduce import trace as trace
from tinygrad_rnn.ops.reduce import var as var
from tinygrad_rnn.ops.shape import broadcast_to as broadcast_to
from tinygrad_rnn.ops.shape import concatenate as concatenate
from tinygrad_rnn.ops.shape import diag as diag
from tinygrad_rnn.ops.shape import diagonal as diagonal
from tinygrad_rnn.ops.shape import expand_dims as expand_dims
from tinygrad_rnn.ops.shape import flip as flip
from tinygrad_rnn.ops.shape import moveaxis as moveaxis
from tinygrad_rnn.ops.shape import pad as pad
from tinygrad_rnn.ops.shape import ravel as ravel
from tinygrad_rnn.ops.shape import repeat as repeat
from tinygrad_rnn.ops.shape import reshape as reshape
from tinygrad_rnn.ops.shape import roll as roll
from tinygrad_rnn.ops.shape import split as split
from tinygrad_rnn.ops.shape import squeeze as squeeze
from tinygrad_rnn.ops.shape import stack as stack
from tinygrad_rnn.ops.shape import swapaxes as swapaxes
from tinygrad_rnn.ops.shape import tile as tile
from tinygrad_rnn.ops.shape import transpose as transpose
from tinygrad_rnn.ops.shape import tril as tril
from tinygrad_rnn.ops.shape import triu as triu

if not _typing.TYPE_CHECKING:  # a checker that saw it would take every misspelt name

    def __getattr__(name):
        from tinygrad_rnn.errors import nearest

        known = [one for one, value in globals().items() if callable(value) and not one.startswith("_")]
        close = "" if name.startswith("_") else nearest(name, known, whole=False)
        raise AttributeError(f"module 'tinygrad_rnn.ops' has no attribute {name!r}{close}")
