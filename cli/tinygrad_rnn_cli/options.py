"""Options made from the configuration's own fields, and the rule by which their values are found.

A flag, its help, default, choices and limits all come from the dataclasses of the library. A value is
looked for in this order: flag, environment, --set, config file, recipe, the run's checkpoint, default;
`resolve` remembers where each was found.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

import tinygrad_rnn as tr
from tinygrad_rnn_cli import aliases
from tinygrad_rnn_cli.console import emit, emit_json, note, screen, warn

if TYPE_CHECKING:
    from click.types import OptionHelpExtra

    from tinygrad_rnn import LoadedModel

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # not generic yet in click 8.2

PREFIX = "TINYGRAD_RNN_"
OTHER_VARIABLES = {"CONFIG", "PLUGIN", "NO_PLUGINS", "COLOR", "CACHE", "THREADS"}  # that are no settings
GIVEN = "tinygrad_rnn_cli.given"  # where a click context keeps what was written
TITLES = {
    "model": "Model",
    "data": "Text and batches",
    "optim": "Optimiser",
    "train": "Training",
    "sample": "Sampling",
}
PLUGGED = {"model.cell": "CELLS", "optim.optim": "OPTIMIZERS", "data.corpus": "DATASETS"}  # settings that name a plugin
SEVERAL = ("sample.temperature",)  # one value in the library; a command may take several, one after the other
TABLES = ("model.cell_options", "optim.optim_options")
COMMON = "Common options"
OWN = "Options"
HELP = "show this page and stop"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Given:
    """What was written on the command line and in the environment, as the parser finds it."""

    flags: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    from_environment: set[str] = field(default_factory=set)
    old_names: list[tuple[str, str]] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    file: Path | None = None
    plugins: tuple[str, ...] = ()
    third_party: bool = True
    show: bool = False
    order: list[click.Parameter] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """The configuration that rules, and where each value came from."""

    run: tr.RunConfig
    sample: tr.SampleConfig
    origins: Mapping[str, str]
    plugins: tuple[str, ...]
    third_party: bool
    extras: Mapping[str, str]
    """what old names say that is no setting: out, init_from, run, text"""
    temperatures: tuple[float, ...] = ()
    """each temperature to sample at, of which `sample` has the first"""

    def written(self, key: str) -> str:
        """The option by which the command line sets `key`; '' where nothing on it does."""
        origin = self.origins.get(key, "default")
        return origin.removeprefix("flag ") if origin.startswith("flag ") else f"{origin} {key}" * (origin == "--set")


def given() -> Given:
    """What the running command was given."""
    found: Given = click.get_current_context().meta.setdefault(GIVEN, Given())
    return found


# ------------------------------------------------------------------------------------- options from fields


class Flag(click.Option):
    """An option that knows its section of the help page, its setting, and its default as a reader writes it."""

    def __init__(
        self, *args: Any, section: str = OWN, key: str = "", shown: str = "", limits: str = "", **facts: Any
    ) -> None:
        super().__init__(*args, **facts)
        self.section = section
        self.key = key
        self.shown = shown
        self.limits = limits

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        value, source = super().consume_value(ctx, opts)
        if source is ParameterSource.ENVIRONMENT:  # click 8.4 tells nobody before the value is converted
            given().from_environment.add(self.name or "")
        return value, source

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        extra = super().get_help_extra(ctx)
        if self.shown:
            extra["default"] = self.shown
        if self.limits:
            extra["range"] = self.limits
        return extra


class Command(click.Command):
    """A command whose help page groups the options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {OWN: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                title = getattr(param, "section", COMMON if "--help" in param.opts else OWN)
                sections.setdefault(title, []).append(record)
        common = sections.pop(COMMON, [])
        for title, records in [*sections.items(), (COMMON, common)]:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = HELP
        return option

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            order = given().order = self.make_parser(ctx).parse_args(args=words)[2]
            for param in dict.fromkeys(order):
                once = isinstance(param, click.Option) and not (param.multiple or param.count)
                if once and order.count(param) > 1:
                    note(f"note: {param.opts[0]} is given {order.count(param)} times; the last one counts")
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        if given().show and not getattr(self.callback, "resolves", False):
            resolve()  # this command has no setting of its own: print and stop here
        return super().invoke(ctx)


class _SettingType(_ParamType):
    """Text to the type of one field, by the library's own rules."""

    def __init__(self, key: str) -> None:
        declared = _declared(key)[1]
        self.key = key
        self.declared = declared
        self.annotation = _types(key.partition(".")[0])[declared.name]
        self.name = key

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        if "metavar" in self.declared.metadata:
            return str(self.declared.metadata["metavar"])
        if typing.get_origin(self.annotation) is Literal:
            return "|".join(map(str, typing.get_args(self.annotation)))
        return {int: "N", float: "X"}.get(self.annotation, "TEXT")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        what = "--" + _flag_name(self.declared)
        if param is not None and _from_environment(param):
            what = str(param.envvar)
        try:
            found = tr.coerce(self.annotation, _unescaped(self.declared, value, what), what)
            tr.check_limits(self.declared, found, what)
        except tr.InputError as error:
            raise click.UsageError(str(error), ctx) from error
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        words: Sequence[str] = [str(word) for word in typing.get_args(self.annotation)]
        if self.key in PLUGGED:
            words = [row.name for row in tr.available_plugins(getattr(tr, PLUGGED[self.key]))]
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _unescaped(declared: dataclasses.Field[Any], value: Any, what: str) -> Any:
    """`value` as a shell's quotes left it, with its escapes replaced where the field says so."""
    return tr.unescape(value, what) if declared.metadata.get("escapes") else value


def _sections() -> dict[str, type[Any]]:
    return {**tr.SECTIONS, "sample": tr.SampleConfig}


@functools.cache
def _types(section: str) -> dict[str, Any]:
    return tr.field_types(_sections()[section])


@functools.cache
def _declared(key: str) -> tuple[type[Any], dataclasses.Field[Any]]:
    section, _, name = key.partition(".")
    cls = _sections()[section]
    return cls, next(f for f in dataclasses.fields(cls) if f.name == name)


def _flag_name(declared: dataclasses.Field[Any]) -> str:
    return str(declared.metadata.get("flag", declared.name.replace("_", "-")))


def option_names() -> dict[str, str]:
    """Every setting (``section.field``) and its flag."""
    return {key: "--" + _flag_name(_declared(key)[1]) for key in _all_keys()}


def _from_environment(param: click.Parameter) -> bool:
    return param.name in given().from_environment


def spell(value: Any) -> str:
    """A default as one writes it on the command line."""
    if value is None or value == "" or value == () or value == {}:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def _limits(declared: dataclasses.Field[Any]) -> str:
    minimum, below = declared.metadata.get("minimum"), declared.metadata.get("below")
    if below is None:
        return "" if minimum is None else f"at least {minimum}"
    return f"below {below}" if minimum is None else f"from {minimum} to below {below}"


def _take(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Keep a value that was given; what was not given leaves no trace, so that lower layers can speak."""
    assert isinstance(param, Flag)
    if value is None or value == ():
        return value
    here = given()
    layer = here.environment if _from_environment(param) else here.flags
    origin = f"environment {param.envvar}" if layer is here.environment else f"flag {param.opts[0]}"
    if param.key in TABLES:
        for name, item in key_values(value, param.opts[0]).items():
            layer[f"{param.key}.{name}"] = item
            here.origins[f"{param.key}.{name}"] = origin
        return value
    layer[param.key] = value
    here.origins[param.key] = origin
    return value


def key_values(items: Sequence[str], flag: str) -> dict[str, str]:
    """The values of a repeatable KEY=VALUE, by key, of which the last one counts."""
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise click.UsageError(f"{flag}: expected KEY=VALUE, got {item!r}")
        if name in pairs:
            note(f"note: {flag} {name} is given more than once; the last one counts")
        pairs[name] = value.strip()
    return pairs


def _option(key: str, short: Sequence[str] = (), hidden: bool = False, section: str = "") -> Flag:
    cls, declared = _declared(key)
    flag = _flag_name(declared)
    default = getattr(cls(), declared.name)
    facts: dict[str, Any] = {
        "help": str(declared.metadata["help"]),
        "section": section or TITLES[key.partition(".")[0]],
        "key": key,
        "shown": spell(default),
        "limits": _limits(declared),
        "envvar": PREFIX + flag.upper().replace("-", "_"),
        "expose_value": False,
        "callback": _take,
        "hidden": hidden,
        "default": None,
    }
    name = key.replace(".", "__")
    if isinstance(default, bool):
        facts["shown"] = flag if default else f"no-{flag}"
        return Flag([f"--{flag}/--no-{flag}", name], **facts)
    if isinstance(default, Mapping):
        return Flag(
            [f"--{flag}", name],
            multiple=True,
            type=str,
            metavar=declared.metadata["metavar"],
            **{**facts, "help": f"{facts['help']}; repeat for several", "shown": ""},
        )
    if isinstance(default, tuple):
        facts["help"] += "; repeat for several"
        return Flag([f"--{flag}", name], multiple=True, type=str, metavar=declared.metadata.get("metavar"), **facts)
    several = key in SEVERAL
    facts["help"] += "; repeat for several" if several else ""
    return Flag([f"--{flag}", *short, name], type=_SettingType(key), multiple=several, **facts)


def settings(*keys: str, short: Mapping[str, str] | None = None, without: Sequence[str] = ()) -> Callable[[F], F]:
    """Decorator: an option for each of the `keys` (``section.field``, or ``section.*`` for all of its fields).

    Options that `common` gives (seed, device, dtype) and the text, which is an argument, are left out.
    """
    wanted: list[str] = []
    for key in keys:
        section, _, name = key.partition(".")
        names = [f.name for f in dataclasses.fields(_sections()[section])] if name == "*" else [name]
        wanted += [f"{section}.{one}" for one in names]
    left_out = {"data.text", "train.seed", "train.device", "train.dtype", *without}

    def decorate(function: F) -> F:
        function.resolves = True  # type: ignore[attr-defined]
        for key in reversed([key for key in wanted if key not in left_out]):
            _attach(function, _option(key, tuple((short or {}).get(key, "").split())))
        return function

    return decorate


def _attach(function: Callable[..., Any], option: click.Option) -> None:
    """What click's own decorators do, for an option that is made already."""
    params: list[click.Parameter] = function.__dict__.setdefault("__click_params__", [])
    params.append(option)


def written(*names: str) -> str:
    """The first of these parameters of the running command that the command line gives, as its option; '' for none."""
    context = click.get_current_context()
    for param in context.command.params:
        if param.name in names and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
            return param.opts[0]
    return ""


def refuse_idle(option: str, why: str) -> None:
    """Raise UsageError where `option` was written (it is not ''), because it does nothing; `why` ends the sentence."""
    if option:
        raise click.UsageError(f"{option} has no effect {why}")


def which_checkpoint(function: F) -> F:
    """Decorator: which checkpoint of a RUN to read, and whether changed code of its cell is worth a warning."""
    changed = click.option(
        "--allow-changed-cell", is_flag=True, help="do not warn where the code of the RUN's cell has changed"
    )
    which = click.option(
        "--which",
        type=click.Choice(["best", "latest"]),
        default="best",
        show_default=True,
        help="which checkpoint of the RUN: the best by validation loss, or the latest",
    )
    return which(changed(function))


def run_folder(example: str) -> Callable[[F], F]:
    """Decorator: --out and --overwrite of a command that makes a run folder, named as in `example` without --out."""
    return _out("RUN", f"the run folder to make  [default: {example}]", "replace the run in --out")


def new_file(default: str) -> Callable[[F], F]:
    """Decorator: --out and --overwrite of a command that writes one file, `default` in the run folder without --out."""
    return _out("FILE", f"the file to write  [default: {default} in the run folder]", "replace the file", "-o")


def _out(what: str, out: str, overwrite: str, *short: str) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        replaced = click.option("--overwrite", is_flag=True, help=overwrite)(function)
        return click.option("--out", *short, type=click.Path(path_type=Path), metavar=what, help=out)(replaced)

    return decorate


def old_names(command: Literal["train", "sample"]) -> Callable[[F], F]:
    """Decorator: the names of char-rnn, torch-rnn and char-rnn-tensorflow, hidden."""

    def take(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None:
            given().old_names.append((param.opts[0], value))

    def decorate(function: F) -> F:
        for name in aliases.NAMES[command]:
            slug = ("old_" if name.startswith("--") else "older_") + name.strip("-")
            _attach(function, Flag([name, slug], hidden=True, expose_value=False, callback=take, type=str))
        return function

    return decorate


# ------------------------------------------------------------------------------------------ common options


def common(*shown: str) -> Callable[[F], F]:
    """Decorator: the options that every command takes. `shown` are those of seed, device, dtype, plugin and config
    that mean something to the command; the rest is accepted too, so that a script can pass them to all, but hidden.
    """

    def decorate(function: F) -> F:
        options = [
            Flag(
                ["--config", "_file"],
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE.toml",
                envvar=PREFIX + "CONFIG",
                callback=_config,
                hidden="config" not in shown,
                help="read settings from this file (--show-config prints one)",
            ),
            Flag(
                ["--set", "_set"],
                multiple=True,
                metavar="SECTION.FIELD=VALUE",
                callback=_sets,
                hidden="config" not in shown,
                help="set one field of the configuration, as in --set optim.beta2=0.99",
            ),
            Flag(
                ["--show-config", "_show"],
                is_flag=True,
                callback=_show,
                hidden="config" not in shown,
                help="print every setting and where it came from, and stop",
            ),
            *(
                _option(f"train.{name}", hidden=name not in shown, section=COMMON)
                for name in ("seed", "device", "dtype")
            ),
            *plugin_options(hidden="plugin" not in shown),
            *screen_options(),
        ]
        for option in reversed(options):
            option.expose_value = False
            if isinstance(option, Flag):
                option.section = COMMON
            _attach(function, option)
        return function

    return decorate


def plugin_options(hidden: bool = False) -> list[click.Option]:
    """--plugin and --no-plugins, which the program itself takes as well as every command."""
    return [
        Flag(
            ["--plugin", "_plugin"],
            multiple=True,
            metavar="PATH.py",
            type=click.Path(),
            expose_value=False,
            callback=_plugins,
            section=COMMON,
            envvar=PREFIX + "PLUGIN",
            hidden=hidden,
            help="load cells and other plugins from this file; repeatable",
        ),
        Flag(
            ["--no-plugins", "_no_plugins"],
            is_flag=True,
            is_eager=True,  # the page that --help prints names plugins
            expose_value=False,
            callback=_no_plugins,
            section=COMMON,
            envvar=PREFIX + "NO_PLUGINS",
            hidden=hidden,
            help="use nothing but what is built in",
        ),
    ]


def screen_options() -> list[click.Option]:
    """-v, -q and --color, which the program itself takes as well as every command."""
    return [
        Flag(
            ["-v", "--verbose", "_verbose"],
            count=True,
            expose_value=False,
            callback=_verbose,
            section=COMMON,
            help="say more; -vv shows the traceback of an error",
        ),
        Flag(
            ["-q", "--quiet", "_quiet"],
            is_flag=True,
            expose_value=False,
            callback=_quiet,
            section=COMMON,
            help="no progress, no advice",
        ),
        Flag(
            ["--color", "_color"],
            type=click.Choice(["auto", "always", "never"]),
            expose_value=False,
            callback=_color,
            section=COMMON,
            shown="auto",
            envvar=PREFIX + "COLOR",
            help="colours; NO_COLOR and FORCE_COLOR are heard too",
        ),
    ]


def _verbose(ctx: click.Context, param: click.Parameter, value: int) -> None:
    screen().verbose += value


def _quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    screen().quiet |= value


def _color(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        screen().color = value
        ctx.color = {"always": True, "never": False}.get(value)


def _config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        given().file = value


def _sets(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    given().sets.extend(value)


def _show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    given().show |= value


def _plugins(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    here = given()
    here.plugins = tuple(dict.fromkeys([*here.plugins, *map(str, value)]))


def _no_plugins(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        given().third_party = False


def load_plugins() -> None:
    """Run the files of --plugin, so that what they register is known."""
    for path in _plugin_files():
        tr.load_plugin_file(path)


def _plugin_files() -> tuple[str, ...]:
    here = given()
    if here.plugins and not here.third_party:
        raise click.UsageError("--plugin and --no-plugins exclude each other; give one of them")
    return here.plugins


# ----------------------------------------------------------------------------------- where a value comes from


def load_run(run: Path, which: str, allow_changed_cell: bool, found: Settings) -> LoadedModel:
    """The trained model of RUN, as `which_checkpoint` and the common options say."""
    loaded = tr.load_run_model(
        run,
        which="latest" if which == "latest" else "best",
        device=found.run.train.device,
        allow_changed_cell=True,
        plugins=found.plugins,
        third_party=found.third_party,
    )
    if loaded.changed is not None and not allow_changed_cell:
        warn(f"{loaded.changed}; its parameters fit, so this goes on (--allow-changed-cell silences this)")
    return loaded


def resolve_run(run: Path) -> Settings:
    """`resolve` for a command that works on RUN."""
    return resolve(base=tr.run_config(tr.open_run(run)), origin=f"run {run}")


def resolve(
    *,
    base: tr.RunConfig | None = None,
    origin: str = "default",
    recipe: str | None = None,
    init_from: Path | None = None,
    text: Sequence[str] = (),
) -> Settings:
    """The configuration of the running command, layer over layer; with --show-config it is printed, and that is all.

    `base` is the configuration of a run that the command works on; what no layer says keeps its value. `init_from` is a
    run that gives its weights, and with them the settings that they are bound to: no layer may say something else.
    Raises UsageError or InputError that name the layer.
    """
    here, files = given(), _plugin_files()
    known = _known_keys()
    _warn_of_misspelt_variables()
    translated = aliases.translate(here.old_names)
    for line in translated.notes:
        note(f"note: {line}")
    for key in translated.settings.keys() & here.flags.keys():
        note(f"note: {translated.sources[key]} gives way to {here.origins[key].removeprefix('flag ')}")
    flags = {**translated.settings, **here.flags}
    if text or translated.extras.get("text"):
        if "data.corpus" in here.flags:
            raise click.UsageError("TEXT and --corpus exclude each other; give one of them")
        flags["data.text"] = tuple(text) or (translated.extras["text"],)
    run = base or tr.RunConfig()
    sample = tr.SampleConfig()
    temperatures: tuple[float, ...] = (sample.temperature,)
    origins = {key: origin for key in _all_keys() if not key.startswith("sample.")}
    origins.update({key: "default" for key in _all_keys() if key.startswith("sample.")})
    bound: dict[str, Any] = {}
    init_from = init_from or (Path(translated.extras["init_from"]) if "init_from" in translated.extras else None)
    if init_from is not None:
        bound = tr.weight_settings(init_from)
        run = tr.replace_config(run, bound)
        options = [f"model.cell_options.{name}" for name in bound["model.cell_options"]]
        origins.update(dict.fromkeys([*bound, *options], f"run {init_from}"))
    file = _read_file(here.file) if here.file else {}
    if base is not None:
        _tell_settled(base, origin, file, known)
        file = {key: value for key, value in file.items() if key in known}
    layers: list[tuple[str, Mapping[str, Any]]] = [
        (f"recipe {recipe}", tr.recipe(recipe) if recipe else {}),
        (f"file {here.file}", file),
        ("--set", _read_sets(here.sets, known if base is not None else None)),
        ("environment", here.environment),
        ("flag", flags),
    ]
    for name, layer in layers:
        of_run = {key: value for key, value in layer.items() if not key.startswith("sample.")}
        of_sample = {key[7:]: value for key, value in layer.items() if key.startswith("sample.")}
        undone = _undone(run, of_run)
        for key, (cause, _) in undone.items():
            lost = _asked_for(run, key, origins)
            if lost and key not in of_run:
                gained = f"{tr.setting_as_words(cause, layer[cause])} ({here.origins.get(cause, name)})"
                note(f"note: {lost} gives way to {gained}")
        try:
            if "temperature" in of_sample:
                temperatures = _several_numbers("sample.temperature", of_sample["temperature"])
                of_sample["temperature"] = temperatures[0]
            run = tr.replace_config(run, {**{key: empty for key, (_, empty) in undone.items()}, **of_run})
            sample = _replace_sample(sample, of_sample)
        except tr.InputError as error:
            raise click.UsageError(_in_words(name, str(error), translated.sources)) from error
        for key in layer:
            origins[key] = here.origins.get(key, name) if name in ("environment", "flag") else name
            if key in translated.settings and key not in here.flags and name == "flag":
                origins[key] = f"flag {translated.sources[key]}"
            if key == "data.text" and name == "flag":
                origins[key] = "argument TEXT"
    found = Settings(run, sample, origins, files, here.third_party, translated.extras, temperatures)
    if init_from is not None:
        _check_weights(found, init_from, bound)
    if here.show:
        _show_config(found, known)
        click.get_current_context().exit()
    return found


def check_effect(found: Settings) -> Settings:
    """The settings, without what the optimiser does not read; a flag that does nothing is a usage error.

    What a file, a recipe or the environment says may be meant for other runs too: that is left out with a warning.
    Raises UsageError.
    """
    flags = option_names()
    for key, flag in flags.items():
        needs = _declared(key)[1].metadata.get("needs")
        if needs and found.written(key):
            section, _, name = needs.partition(".")
            if not getattr(getattr(found.run, section), name):
                raise click.UsageError(f"{flag} has no effect without {flags[needs]}; give both, or leave it out")
    undone = {}
    typed = [key.removeprefix("optim.") for key in flags if found.written(key)]
    for name, why in tr.unread_settings(found.run.optim, typed, third_party=found.third_party).items():
        key = f"optim.{name}"
        value, origin = getattr(found.run.optim, name), found.origins[key]
        if origin.startswith(("flag", "--set")):
            raise click.UsageError(f"{flags[key]} {spell(value)} has no effect: {why}; change --optim, or leave it out")
        warn(f"{origin}: {key} = {spell(value)} is left out, for {why}")
        undone[name] = getattr(tr.OptimConfig(), name)
    optim = dataclasses.replace(found.run.optim, **undone)
    return dataclasses.replace(found, run=dataclasses.replace(found.run, optim=optim))


def _tell_settled(base: tr.RunConfig, origin: str, file: Mapping[str, Any], known: set[str]) -> None:
    """Say which settings of a config file do nothing, because the run has settled them otherwise."""
    settled = {**_flat(Settings(base, tr.SampleConfig(), {}, (), True, {})), "data.text": None}
    said = {key: tuple(value) if isinstance(value, list) else value for key, value in file.items() if key not in known}
    other = [key for key, value in said.items() if settled.get(key) not in (None, value, str(value))]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        note(f"note: {given().file}: {', '.join(other[:3])}{more} do nothing here; they are those of the {origin}")


def _check_weights(found: Settings, init_from: Path, bound: Mapping[str, Any]) -> None:
    """Refuse a setting that weights cannot be put to, and say which ones they bring along."""
    entry = tr.find_cell(bound["model.cell"], plugins=found.plugins, third_party=found.third_party)
    conflicts = tr.weight_conflicts(found.run, bound, entry.cls.Options)
    if conflicts:
        needed = ", ".join(theirs for theirs, _ in conflicts.values())
        got = ", ".join(f"{ours} ({found.origins.get(key, 'default')})" for key, (_, ours) in conflicts.items())
        raise click.UsageError(f"--init-from {init_from}: its weights need {needed}, got {got}; leave these out")
    stored = tr.describe_run(tr.open_run(init_from)).get("cell", {}).get("source_sha256")
    if stored not in (None, entry.identity.source_sha256):
        warn(f"--init-from {init_from}: the code of cell {entry.cls.name} has changed; check that it means the same")
    mine = f"run {init_from}"
    options = bound["model.cell_options"]
    options = {name: value for name, value in options.items() if found.origins[f"model.cell_options.{name}"] == mine}
    default = tr.RunConfig()
    brought = [
        tr.setting_as_words(key, value)
        for key, value in {**bound, "model.cell_options": options}.items()
        if found.origins[key] == mine and value != tr.setting_of(default, key)
    ]
    if brought:
        note(f"note: --init-from {init_from} brings {' '.join(brought)}")
    stored_type, dtype = tr.run_config(tr.open_run(init_from)).train.dtype, found.run.train.dtype
    if stored_type == "float64" != dtype:
        note(f"note: --init-from {init_from}: its weights are rounded to {dtype}; --dtype float64 keeps them")


# What a setting takes back of the layers below it: options belong to one cell or optimiser, a corpus replaces a text,
# and a length in steps would overrule one in epochs.
_TAKES_BACK: Mapping[str, tuple[str, Any]] = {
    "model.cell": ("model.cell_options", {}),
    "optim.optim": ("optim.optim_options", {}),
    "data.corpus": ("data.text", ()),
    "train.epochs": ("train.steps", 0),
}


def _asked_for(run: tr.RunConfig, key: str, origins: Mapping[str, str]) -> str:
    """A setting that a file, --set or the environment made, in words with where; '' for one that nobody asked for."""
    made = [where for known, where in origins.items() if known == key or known.startswith(f"{key}.")]
    made = [where for where in made if where.startswith(("file", "--set", "environment"))]
    value = tr.setting_of(run, key)
    return f"{tr.setting_as_words(key, value)} ({made[0]})" if made and value else ""


def _undone(run: tr.RunConfig, layer: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The settings that a layer takes back by what it says: each with the setting that does it, and what is left."""
    return {
        key: (cause, empty)
        for cause, (key, empty) in _TAKES_BACK.items()
        if cause in layer and (empty != {} or layer[cause] != tr.setting_of(run, cause))
    }


def _replace_sample(sample: tr.SampleConfig, changes: Mapping[str, Any]) -> tr.SampleConfig:
    new: dict[str, Any] = {}
    names = {f.name: f for f in dataclasses.fields(sample)}
    for name, value in changes.items():
        if name not in names:
            raise tr.InputError(f"no setting 'sample.{name}'{tr.nearest(name, names)}")
        new[name] = tr.coerce(tr.field_types(tr.SampleConfig)[name], value, f"sample.{name}")
        tr.check_limits(names[name], new[name], f"sample.{name}")
    return dataclasses.replace(sample, **new)


def _several_numbers(key: str, value: Any) -> tuple[float, ...]:
    """One number or several: a list, or a text with commas."""
    listed = value if isinstance(value, str | list | tuple) else [value]
    numbers: tuple[float, ...] = tr.coerce(tuple[float, ...], listed, key)
    if not numbers:
        raise tr.InputError(f"{key}: expected a number, or several, got none")
    for number in numbers:
        tr.check_limits(_declared(key)[1], number, key)
        if numbers.count(number) > 1:  # each would print the same text
            raise tr.InputError(f"{key}: expected numbers that differ, got {number:g} more than once; see --num")
    return numbers


def _in_words(layer: str, message: str, old: Mapping[str, str]) -> str:
    """An error of the configuration with the place where the value was written."""
    if layer != "flag":
        return f"{layer.removeprefix('file ')}: {message}"
    key, colon, rest = message.partition(":")
    flag = old.get(key) or option_names().get(key)
    return f"{flag}{colon}{rest}" if flag else message


def _known_keys() -> set[str]:
    """The settings that the running command has an option for."""
    params = click.get_current_context().command.params
    keys = {param.key for param in params if isinstance(param, Flag) and param.key}
    if any(isinstance(param, click.Argument) and param.name == "text" for param in params):
        keys.add("data.text")
    return keys


def _warn_of_misspelt_variables() -> None:
    """Warn of environment variables that look like a misspelt setting; any other may belong to another program."""
    names = {flag[2:].upper().replace("-", "_") for flag in option_names().values()} | OTHER_VARIABLES
    names |= {group.variable.removeprefix(PREFIX) for group in tr.PLUGIN_GROUPS}
    for variable in sorted(os.environ):
        name = variable.removeprefix(PREFIX)
        if variable.startswith(PREFIX) and name not in names:
            near = tr.nearest(f"_{name}", {f"_{known}" for known in names}, whole=False)  # as --help abridges them
            if near:
                warn(f"the environment's {variable} sets nothing{near}")


def _hidden_keys() -> set[str]:
    """The settings that the running command accepts, and does nothing with."""
    return {
        param.key for param in click.get_current_context().command.params if isinstance(param, Flag) and param.hidden
    }


def _all_keys() -> list[str]:
    return [f"{section}.{f.name}" for section, cls in _sections().items() for f in dataclasses.fields(cls)]


def _read_sets(items: Sequence[str], only: set[str] | None) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise click.UsageError(f"--set: expected SECTION.FIELD=VALUE, got {item!r}")
        home = ".".join(key.split(".")[:2])
        if only is not None and home in _all_keys() and home not in only:
            own = ", ".join(sorted(only - _hidden_keys())) or "nothing"
            raise click.UsageError(f"--set {key}: the run has settled it; this command sets {own}")
        layer[key] = (
            value.strip() if home not in _all_keys() else _unescaped(_declared(home)[1], value.strip(), f"--set {key}")
        )
    return layer


def _read_file(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise tr.FileError(f"--config {path}: {error.strerror or error}; expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise tr.FileError(f"--config {path}: expected TOML, got an error: {error}") from error
    layer: dict[str, Any] = {}
    for section, fields in tables.items():
        if section not in _sections() or not isinstance(fields, Mapping):
            homes = [key for key in _all_keys() if key.endswith(f".{section}")]
            hint = f"; did you mean {', '.join(homes)}?" if homes else tr.nearest(section, _sections())
            raise click.UsageError(f"{path}: expected tables [model], [data], ..., got {section!r}{hint}")
        for name, value in fields.items():
            layer[f"{section}.{name}"] = value
    return layer


def _show_config(found: Settings, known: set[str]) -> None:
    """Print the settings as TOML that --config reads back, each with its origin; as JSON where --json was given."""
    values = _flat(found)
    wanted = [key for key in values if ".".join(key.split(".")[:2]) in known]
    if click.get_current_context().params.get("as_json"):
        emit_json({key: {"value": values[key], "origin": found.origins.get(key, "default")} for key in wanted})
        return
    lines = [(f"{key} = {_toml(values[key])}", found.origins.get(key, "default")) for key in wanted]
    width = min(48, max((len(line) for line, _ in lines), default=0))
    for line, where in lines:
        emit(f"{line.ljust(width)}  # {where}")


def _flat(found: Settings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section, fields in {**tr.config_as_dict(found.run), "sample": dataclasses.asdict(found.sample)}.items():
        for name, value in fields.items():
            if isinstance(value, Mapping) and value:
                values.update({f"{section}.{name}.{option}": item for option, item in value.items()})
            elif not isinstance(value, Mapping):
                values[f"{section}.{name}"] = value
    if len(found.temperatures) > 1:
        values["sample.temperature"] = found.temperatures
    return values


def _toml(value: Any) -> str:
    import json

    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:  # TOML has no word for it; the library reads this one
        return '"none"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return (
        repr(value)
        if isinstance(value, int | float)
        else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    )


def free_folder(parent: Path, stem: str) -> Path:
    """The first of parent/stem-1, -2, ... that does not exist."""
    number = 1
    while os.path.lexists(parent / f"{stem}-{number}"):
        number += 1
    return parent / f"{stem}-{number}"
