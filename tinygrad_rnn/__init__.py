"""Write, train and understand recurrent cells: a tiny autograd engine on NumPy or CuPy.

The public names. Each is loaded when it is first used, so that importing this package imports no NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tinygrad_rnn import ops as ops
    from tinygrad_rnn.autodiff import gradcheck as gradcheck
    from tinygrad_rnn.autodiff import hvp as hvp
    from tinygrad_rnn.autodiff import jacobian as jacobian
    from tinygrad_rnn.autodiff import jvp as jvp
    from tinygrad_rnn.autodiff import recompute as recompute
    from tinygrad_rnn.autodiff import vjp as vjp
    from tinygrad_rnn.backend import Device as Device
    from tinygrad_rnn.backend import from_host as from_host
    from tinygrad_rnn.backend import select as select_device
    from tinygrad_rnn.backend import to_host as to_host
    from tinygrad_rnn.bench import BENCH_SHAPES as BENCH_SHAPES
    from tinygrad_rnn.bench import TrainedStep as TrainedStep
    from tinygrad_rnn.bench import bench as bench_cell
    from tinygrad_rnn.bench import training_step as training_step
    from tinygrad_rnn.cell import Cell as Cell
    from tinygrad_rnn.cell import Noise as Noise
    from tinygrad_rnn.cell import Param as Param
    from tinygrad_rnn.cell import State as State
    from tinygrad_rnn.cell import Timestep as Timestep
    from tinygrad_rnn.cell import bias as bias
    from tinygrad_rnn.cell import buffer as buffer
    from tinygrad_rnn.cell import draw_noise as draw_noise
    from tinygrad_rnn.cell import init_cell as init_cell
    from tinygrad_rnn.cell import input_matrix as input_matrix
    from tinygrad_rnn.cell import output_of as output_of
    from tinygrad_rnn.cell import recurrent_matrix as recurrent_matrix
    from tinygrad_rnn.cell import specification as specification
    from tinygrad_rnn.checkpoint import load as load_checkpoint
    from tinygrad_rnn.checkpoint import save as save_checkpoint
    from tinygrad_rnn.compile.show import GraphPart as GraphPart
    from tinygrad_rnn.compile.show import GraphValue as GraphValue
    from tinygrad_rnn.compile.show import StepGraph as StepGraph
    from tinygrad_rnn.compile.show import step_code as step_code
    from tinygrad_rnn.compile.show import step_graph as step_graph
    from tinygrad_rnn.compile.show import step_graph_dot as step_graph_dot
    from tinygrad_rnn.compile.show import step_graph_text as step_graph_text
    from tinygrad_rnn.config import RECIPES as RECIPES
    from tinygrad_rnn.config import RESUMABLE as RESUMABLE
    from tinygrad_rnn.config import SECTIONS as SECTIONS
    from tinygrad_rnn.config import DataConfig as DataConfig
    from tinygrad_rnn.config import ModelConfig as ModelConfig
    from tinygrad_rnn.config import OptimConfig as OptimConfig
    from tinygrad_rnn.config import RunConfig as RunConfig
    from tinygrad_rnn.config import SampleConfig as SampleConfig
    from tinygrad_rnn.config import TrainConfig as TrainConfig
    from tinygrad_rnn.config import as_dict as config_as_dict
    from tinygrad_rnn.config import from_dict as config_from_dict
    from tinygrad_rnn.config import recipe as recipe
    from tinygrad_rnn.config import replace as replace_config
    from tinygrad_rnn.config import setting_as_words as setting_as_words
    from tinygrad_rnn.config import setting_of as setting_of
    from tinygrad_rnn.data import COMPRESSED as COMPRESSED
    from tinygrad_rnn.data import Corpus as Corpus
    from tinygrad_rnn.data import CorpusText as CorpusText
    from tinygrad_rnn.data import Dataset as Dataset
    from tinygrad_rnn.data import Streams as Streams
    from tinygrad_rnn.data import Vocabulary as Vocabulary
    from tinygrad_rnn.data import corpora as corpora
    from tinygrad_rnn.data import fitted_streams as fitted_streams
    from tinygrad_rnn.data import load_dataset as load_dataset
    from tinygrad_rnn.data import read_text as read_text
    from tinygrad_rnn.data import register_dataset as register_dataset
    from tinygrad_rnn.data import text_statistics as text_statistics
    from tinygrad_rnn.diagnostics import HORIZON_EPS as HORIZON_EPS
    from tinygrad_rnn.diagnostics import GradNormReport as GradNormReport
    from tinygrad_rnn.diagnostics import GradNormSeries as GradNormSeries
    from tinygrad_rnn.diagnostics import beside_rnn as beside_rnn
    from tinygrad_rnn.diagnostics import grade as grade
    from tinygrad_rnn.diagnostics import gradnorm as gradnorm
    from tinygrad_rnn.diagnostics import gradnorm_over as gradnorm_over
    from tinygrad_rnn.diagnostics import number_text as number_text
    from tinygrad_rnn.diagnostics import register_diagnostic as register_diagnostic
    from tinygrad_rnn.diagnostics import rnn_like as rnn_like
    from tinygrad_rnn.diagnostics import rnn_share_text as rnn_share_text
    from tinygrad_rnn.diagnostics import run_diagnostic as run_diagnostic
    from tinygrad_rnn.diagnostics import share_text as share_text
    from tinygrad_rnn.engine import anomaly as anomaly
    from tinygrad_rnn.engine import listen as listen
    from tinygrad_rnn.engine import no_grad as no_grad
    from tinygrad_rnn.engine import primitive as primitive
    from tinygrad_rnn.engine import tap as tap
    from tinygrad_rnn.errors import CheckpointError as CheckpointError
    from tinygrad_rnn.errors import DataError as DataError
    from tinygrad_rnn.errors import DeviceError as DeviceError
    from tinygrad_rnn.errors import DtypeError as DtypeError
    from tinygrad_rnn.errors import FileError as FileError
    from tinygrad_rnn.errors import GradientError as GradientError
    from tinygrad_rnn.errors import InPlaceError as InPlaceError
    from tinygrad_rnn.errors import InputError as InputError
    from tinygrad_rnn.errors import NonFiniteError as NonFiniteError
    from tinygrad_rnn.errors import PluginError as PluginError
    from tinygrad_rnn.errors import ShapeError as ShapeError
    from tinygrad_rnn.errors import TinygradRNNError as TinygradRNNError
    from tinygrad_rnn.errors import UnknownSymbolError as UnknownSymbolError
    from tinygrad_rnn.errors import nearest as nearest
    from tinygrad_rnn.evaluate import Score as Score
    from tinygrad_rnn.evaluate import is_cold as is_cold
    from tinygrad_rnn.evaluate import score as score
    from tinygrad_rnn.evaluate import start_losses as start_losses
    from tinygrad_rnn.events import Event as Event
    from tinygrad_rnn.events import Finished as Finished
    from tinygrad_rnn.events import RolledBack as RolledBack
    from tinygrad_rnn.events import Sampled as Sampled
    from tinygrad_rnn.events import Saved as Saved
    from tinygrad_rnn.events import Started as Started
    from tinygrad_rnn.events import StepDone as StepDone
    from tinygrad_rnn.events import Validated as Validated
    from tinygrad_rnn.events import Watched as Watched
    from tinygrad_rnn.graph import cell_to_dot as cell_to_dot
    from tinygrad_rnn.graph import to_dot as to_dot
    from tinygrad_rnn.interchange import Imported as Imported
    from tinygrad_rnn.interchange import StateDict as StateDict
    from tinygrad_rnn.interchange import from_torch as from_torch
    from tinygrad_rnn.interchange import import_torch as import_torch
    from tinygrad_rnn.interchange import read_state_dict as read_state_dict
    from tinygrad_rnn.interchange import read_vocabulary as read_vocabulary
    from tinygrad_rnn.interchange import save_torch as save_torch
    from tinygrad_rnn.interchange import to_torch as to_torch
    from tinygrad_rnn.interchange import torch_code as torch_code
    from tinygrad_rnn.model import Carried as Carried
    from tinygrad_rnn.model import Forward as Forward
    from tinygrad_rnn.model import Model as Model
    from tinygrad_rnn.model import build_model as build_model
    from tinygrad_rnn.onnx_export import onnx_difference as onnx_difference
    from tinygrad_rnn.onnx_export import onnx_inputs as onnx_inputs
    from tinygrad_rnn.onnx_export import onnx_session as onnx_session
    from tinygrad_rnn.onnx_export import onnxruntime_version as onnxruntime_version
    from tinygrad_rnn.onnx_export import save_onnx as save_onnx
    from tinygrad_rnn.onnx_export import to_onnx as to_onnx
    from tinygrad_rnn.optim import Optimizer as Optimizer
    from tinygrad_rnn.optim import build_optimizer as build_optimizer
    from tinygrad_rnn.optim import pieces as gradient_pieces
    from tinygrad_rnn.optim import register_optimizer as register_optimizer
    from tinygrad_rnn.optim import unread_settings as unread_settings
    from tinygrad_rnn.options import check_limits as check_limits
    from tinygrad_rnn.options import coerce as coerce
    from tinygrad_rnn.options import field_types as field_types
    from tinygrad_rnn.options import parse_options as parse_options
    from tinygrad_rnn.options import unescape as unescape
    from tinygrad_rnn.plots import gradnorm_figure as gradnorm_figure
    from tinygrad_rnn.plots import loss_figure as loss_figure
    from tinygrad_rnn.plots import norm_figure as norm_figure
    from tinygrad_rnn.plots import recorded as recorded
    from tinygrad_rnn.plots import save_figure as save_figure
    from tinygrad_rnn.plugins import CALLBACKS as CALLBACKS
    from tinygrad_rnn.plugins import CELLS as CELLS
    from tinygrad_rnn.plugins import COMMANDS as COMMANDS
    from tinygrad_rnn.plugins import DATASETS as DATASETS
    from tinygrad_rnn.plugins import DIAGNOSTICS as DIAGNOSTICS
    from tinygrad_rnn.plugins import GROUPS as PLUGIN_GROUPS
    from tinygrad_rnn.plugins import OPTIMIZERS as OPTIMIZERS
    from tinygrad_rnn.plugins import PluginGroup as PluginGroup
    from tinygrad_rnn.plugins import PluginIdentity as PluginIdentity
    from tinygrad_rnn.plugins import PluginRow as PluginRow
    from tinygrad_rnn.plugins import author_error as author_error
    from tinygrad_rnn.plugins import available as available_plugins
    from tinygrad_rnn.plugins import load as load_plugin
    from tinygrad_rnn.plugins import register_command as register_command
    from tinygrad_rnn.registry import CellEntry as CellEntry
    from tinygrad_rnn.registry import available_cells as available_cells
    from tinygrad_rnn.registry import load_cell as load_cell
    from tinygrad_rnn.registry import load_plugin_file as load_plugin_file
    from tinygrad_rnn.registry import register_cell as register_cell
    from tinygrad_rnn.replay import Replay as Replay
    from tinygrad_rnn.replay import replay_step as replay_step
    from tinygrad_rnn.restore import LoadedModel as LoadedModel
    from tinygrad_rnn.restore import find_cell as find_cell
    from tinygrad_rnn.restore import load_run_model as load_run_model
    from tinygrad_rnn.restore import run_vocabulary as run_vocabulary
    from tinygrad_rnn.restore import weight_conflicts as weight_conflicts
    from tinygrad_rnn.restore import weight_settings as weight_settings
    from tinygrad_rnn.run import Run as Run
    from tinygrad_rnn.run import best_checkpoint as best_checkpoint
    from tinygrad_rnn.run import checkpoints as checkpoints
    from tinygrad_rnn.run import describe as describe_run
    from tinygrad_rnn.run import latest_checkpoint as latest_checkpoint
    from tinygrad_rnn.run import open_run as open_run
    from tinygrad_rnn.run import read_metrics as read_metrics
    from tinygrad_rnn.run import run_config as run_config
    from tinygrad_rnn.sample import base64_bytes as base64_bytes
    from tinygrad_rnn.sample import generate as generate
    from tinygrad_rnn.sample import readable as readable
    from tinygrad_rnn.sequence import Unrolled as Unrolled
    from tinygrad_rnn.sequence import scan as scan
    from tinygrad_rnn.sequence import truncated_windows as truncated_windows
    from tinygrad_rnn.sequence import unroll as unroll
    from tinygrad_rnn.tensor import Tensor as Tensor
    from tinygrad_rnn.tensor import grad as grad
    from tinygrad_rnn.testing import CellCheck as CellCheck
    from tinygrad_rnn.testing import CellReport as CellReport
    from tinygrad_rnn.testing import check_cell as check_cell
    from tinygrad_rnn.textplot import sparkline as sparkline
    from tinygrad_rnn.textplot import terminal_plot as terminal_plot
    from tinygrad_rnn.train import DivergedError as DivergedError
    from tinygrad_rnn.train import Plan as Plan
    from tinygrad_rnn.train import Trainer as Trainer
    from tinygrad_rnn.train import describe_division as describe_division
    from tinygrad_rnn.train import plan as plan
    from tinygrad_rnn.train import register_callback as register_callback
    from tinygrad_rnn.train import resume_training as resume_training
    from tinygrad_rnn.train import start_training as start_training
    from tinygrad_rnn.wrap import wrap_cell as wrap_cell

    # To a type checker an import under another name is private unless it stands here.
    __all__ = [
        "PLUGIN_GROUPS",
        "available_plugins",
        "bench_cell",
        "config_as_dict",
        "config_from_dict",
        "describe_run",
        "gradient_pieces",
        "load_checkpoint",
        "load_plugin",
        "replace_config",
        "save_checkpoint",
        "select_device",
    ]

# module -> the names it gives; "old:new" renames. The block above says the same to type checkers.
_PUBLIC = {
    "autodiff": "gradcheck hvp jacobian jvp recompute vjp",
    "backend": "Device from_host select:select_device to_host",
    "bench": "BENCH_SHAPES TrainedStep bench:bench_cell training_step",
    "cell": (
        "Cell Noise Param State Timestep bias buffer draw_noise init_cell input_matrix output_of recurrent_matrix "
        "specification"
    ),
    "checkpoint": "load:load_checkpoint save:save_checkpoint",
    "compile.show": "GraphPart GraphValue StepGraph step_code step_graph step_graph_dot step_graph_text",
    "config": (
        "DataConfig ModelConfig OptimConfig RECIPES RESUMABLE RunConfig SECTIONS SampleConfig TrainConfig "
        "as_dict:config_as_dict from_dict:config_from_dict recipe replace:replace_config "
        "setting_as_words setting_of"
    ),
    "data": (
        "COMPRESSED Corpus CorpusText Dataset Streams Vocabulary corpora fitted_streams load_dataset read_text "
        "register_dataset text_statistics"
    ),
    "diagnostics": (
        "GradNormReport GradNormSeries HORIZON_EPS beside_rnn grade gradnorm gradnorm_over number_text "
        "register_diagnostic rnn_like rnn_share_text run_diagnostic share_text"
    ),
    "engine": "anomaly listen no_grad primitive tap",
    "errors": (
        "CheckpointError DataError DeviceError DtypeError FileError GradientError InPlaceError InputError "
        "NonFiniteError PluginError ShapeError TinygradRNNError UnknownSymbolError nearest"
    ),
    "evaluate": "Score is_cold score start_losses",
    "events": "Event Finished RolledBack Sampled Saved Started StepDone Validated Watched",
    "graph": "cell_to_dot to_dot",
    "interchange": (
        "Imported StateDict from_torch import_torch read_state_dict read_vocabulary save_torch to_torch torch_code"
    ),
    "model": "Carried Forward Model build_model",
    "optim": "Optimizer build_optimizer pieces:gradient_pieces register_optimizer unread_settings",
    "onnx_export": "onnx_difference onnx_inputs onnx_session onnxruntime_version save_onnx to_onnx",
    "options": "check_limits coerce field_types parse_options unescape",
    "plugins": (
        "CALLBACKS CELLS COMMANDS DATASETS DIAGNOSTICS GROUPS:PLUGIN_GROUPS OPTIMIZERS PluginGroup PluginIdentity "
        "PluginRow author_error available:available_plugins load:load_plugin register_command"
    ),
    "plots": "gradnorm_figure loss_figure norm_figure recorded save_figure",
    "registry": "CellEntry available_cells load_cell load_plugin_file register_cell",
    "replay": "Replay replay_step",
    "restore": "LoadedModel find_cell load_run_model run_vocabulary weight_conflicts weight_settings",
    "run": "Run best_checkpoint checkpoints describe:describe_run latest_checkpoint open_run read_metrics run_config",
    "sample": "base64_bytes generate readable",
    "sequence": "Unrolled scan truncated_windows unroll",
    "tensor": "Tensor grad",
    "testing": "CellCheck CellReport check_cell",
    "textplot": "sparkline terminal_plot",
    "train": "DivergedError Plan Trainer describe_division plan register_callback resume_training start_training",
    "wrap": "wrap_cell",
}
_SOURCES = {
    name.rpartition(":")[2]: (module, name.partition(":")[0])
    for module, names in _PUBLIC.items()
    for name in names.split()
}


if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name
    __all__ = sorted([*_SOURCES, "ops"])  # else `import *` brings what was imported here

    def __getattr__(name: str) -> Any:
        if name == "ops":
            return importlib.import_module("tinygrad_rnn.ops")
        if name not in _SOURCES:
            from tinygrad_rnn.errors import nearest

            close = "" if name.startswith("_") else nearest(name, __all__, whole=False)
            raise AttributeError(f"module 'tinygrad_rnn' has no attribute {name!r}{close}")
        module, original = _SOURCES[name]
        return getattr(importlib.import_module(f"tinygrad_rnn.{module}"), original)


def __dir__() -> list[str]:
    return sorted([*_SOURCES, "ops", "__version__"])
