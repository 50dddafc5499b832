"""The command line: arguments -> one call of the API -> report.

Results go to stdout, progress and messages to stderr. Exit 0 when the fit succeeded, 1 when it did not, 2 for bad input (one
line, no traceback). Text from the command line is data: a formula is parsed by a grammar, never evaluated; ``--model`` is the
one door for code. Heavy libraries are imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gradfit.errors import DataError, GradfitError, GradfitWarning, ModelError, OptionError, StorageError

if TYPE_CHECKING:
    from gradfit.result import FitResult
    from gradfit.results import FitResults

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".eps", ".ps", ".tif", ".tiff", ".webp")

TABLES = (".parquet", ".pq", ".nc", ".nc4")  # files of many fits
LISTED = 40  # fits that are printed one by one

INTERRUPTED = 130  # what shells give a program that was stopped by Ctrl-C

app = typer.Typer(
    help="Fit parametric models to measured data by exact gradients, with honest uncertainties.",
    add_completion=False,
    rich_markup_mode=None,
)

Several = Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")]


@app.command()
def fit(
    data: Annotated[str, typer.Argument(help="CSV or Parquet file with a header.")],
    formula: Annotated[str | None, typer.Argument(help='Such as "t_c = w*t_u + b".')] = None,
    model: Annotated[str | None, typer.Option(help="file.py:function instead of a formula. Runs that file.")] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict, where the formula does not name it.")] = None,
    method: Annotated[
        str | None, typer.Option(help="lm (default), linear, differential_evolution, or a torch optimizer: sgd, adam, lbfgs, ...")
    ] = None,
    start: Annotated[str | None, typer.Option(help="w=1,b=0")] = None,
    bounds: Annotated[str | None, typer.Option(help="w=0:,b=-20:20 (lower:upper, either may be left out)")] = None,
    fix: Annotated[str | None, typer.Option(help="b=0 keeps a parameter at a value")] = None,
    tie: Annotated[list[str] | None, typer.Option(help='"b=2*w" computes a parameter from others; may be repeated')] = None,
    sigma: Annotated[str | None, typer.Option(help="Column with the standard deviation of the target, or one number.")] = None,
    sigma_x: Annotated[
        str | None,
        typer.Option(help="The same of the input, where it is measured too; of several inputs u=COL,v=0.1. Exact if not named."),
    ] = None,
    absolute_sigma: Annotated[bool, typer.Option("--absolute-sigma", help="sigma are measured errors, not weights.")] = False,
    weights: Annotated[str | None, typer.Option(help="Column with how much each row counts; not together with --sigma.")] = None,
    loss: Annotated[str, typer.Option(help="squared, huber, soft_l1, cauchy, arctan, poisson")] = "squared",
    f_scale: Annotated[float | None, typer.Option(help="Residual from which a robust loss bends.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of gradient descent.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step; default all.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="A torch learning-rate scheduler by name.")] = None,
    scheduler_option: Several = None,
    averaging: Annotated[str | None, typer.Option(help="swa or ema")] = None,
    early_stopping: Annotated[int | None, typer.Option(help="Epochs of patience; needs --validation.")] = None,
    no_scale: Annotated[bool, typer.Option("--no-scale", help="Descend in the user's own units, as a plain torch loop.")] = False,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the optimizer, such as momentum=0.9; may be repeated.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Of Levenberg-Marquardt.")] = None,
    multistart: Annotated[int | None, typer.Option(help="Fit from this many starts and take the lowest minimum.")] = None,
    validation: Annotated[str | None, typer.Option(help="Fraction such as 0.2, or a file with validation rows.")] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate with this many folds.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Fit each group of rows by itself: the column that tells them apart; may be repeated."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of the fits of --by; default all cores.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Folder that keeps finished fits of --by; the same command goes on.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of starts, the split, the folds and the mini-batches.")] = 0,
    missing: Annotated[
        str | None, typer.Option(help="raise, or drop rows with missing values; default raise, with --by drop")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64")] = None,
    engine: Annotated[str, typer.Option(help="auto; native: an error where the model cannot be compiled; torch")] = "auto",
    encoding: Annotated[str, typer.Option(help="Of the CSV file.")] = "utf-8",
    every: Annotated[int | None, typer.Option(help="Print a training line every so many steps, to stderr.")] = None,
    save: Annotated[str | None, typer.Option(help="Write the result as JSON; the fits of --by as .parquet or .nc.")] = None,
    html: Annotated[str | None, typer.Option(help="Write the report as one page.")] = None,
    plot: Annotated[str | None, typer.Option(help="Write a picture of data and fit (.png, .svg, .pdf).")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON instead of the report; with --by a line for each fit.")
    ] = False,
) -> None:
    """Fit a model to the rows of a file."""
    _check_grouped(
        by,
        {"--threads": threads, "--checkpoint": checkpoint},
        {
            "--weights": weights,
            "--sigma-x": sigma_x,
            "--multistart": multistart,
            "--folds": folds,
            "--every": every,
            "--html": html,
            "--plot": plot,
        },
    )
    _check_suffix(save, many=by is not None)
    _check_outputs(save=save, html=html, plot=plot, inputs=(data, validation, (model or "").rpartition(":")[0]))
    what: str | Callable[..., Any] = _model(formula, model)
    options: dict[str, Any] = {
        "learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "scheduler": scheduler,
        "scheduler_options": _settings(scheduler_option, "--scheduler-option") or None, "averaging": averaging,
        "early_stopping": early_stopping, "scale": False if no_scale else None, "max_steps": max_steps,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    extra = _settings(option, "--option")
    from gradfit import api

    _check_extra(extra, {*options, *signature(api.fit).parameters, "by", "threads", "checkpoint"})
    shared: dict[str, Any] = {
        "data": data, "target": target, "method": method, "start": _numbers(start, "--start"), "bounds": _bounds(bounds),
        "fixed": _numbers(fix, "--fix"), "tied": _pairs(tie, "--tie") or None, "sigma": _sigma(sigma),
        "absolute_sigma": absolute_sigma, "loss": loss, "f_scale": f_scale, "seed": seed, "dtype": dtype, "engine": engine,
        "encoding": encoding, "on_failure": "ignore", **given, **extra,
    }  # fmt: skip
    if by is not None:
        _fit_each(what, shared, by, validation, missing, threads=threads, checkpoint=checkpoint, json=json, save=save)
    with _warnings_in_one_line():
        result = api.fit(
            what, weights=weights, sigma_x=_sigma_x(sigma_x), multistart=multistart, validation=_validation(validation), folds=folds, missing=missing or "raise", every=every,  # type: ignore[arg-type]
            out=sys.stderr, **shared,
        )  # fmt: skip
    _show(result, json=json, html=html, plot=plot, save=save)
    raise typer.Exit(0 if result.success else 1)


def _fit_each(
    model: str | Callable[..., Any],
    shared: dict[str, Any],
    by: list[str],
    validation: str | None,
    missing: str | None,
    *,
    threads: int | None,
    checkpoint: str | None,
    json: bool,
    save: str | None,
) -> NoReturn:
    """Fit each group of rows by itself, and end with the exit code."""
    from gradfit import many

    fraction = None if validation is None else _as_number(validation)
    if validation is not None and fraction is None:
        raise OptionError(f"--validation is {validation!r}; with --by expected a fraction of each fit's rows, such as 0.2.")
    with _warnings_in_one_line():
        results = many.fit_many(
            model, by=by, validation=fraction, missing=missing or "drop", threads=threads, checkpoint=checkpoint, **shared  # type: ignore[arg-type]
        )  # fmt: skip
    _show_many(results, json=json, save=save)
    left = bool((results.status == "not_done").any())
    raise typer.Exit(INTERRUPTED if left else 0 if results.success.all() else 1)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print what gradfit warns of as it prints errors: one line on stderr, without a place in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", GradfitWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, GradfitWarning):
                print(f"gradfit: {message}", file=sys.stderr)
            else:
                others(message, category, *place, **more)

        warnings.showwarning = show
        yield


@app.command()
def predict(
    saved: Annotated[str, typer.Argument(help="A result written by --save.")],
    data: Annotated[str, typer.Argument(help="CSV or Parquet file with the model's data columns.")],
    interval: Annotated[str | None, typer.Option(help="confidence or prediction: adds lower and upper columns")] = None,
    level: Annotated[float | None, typer.Option(help="Of the interval; default 0.95.")] = None,
    sigma: Annotated[str | None, typer.Option(help="Column with the new points' standard deviations, or one number.")] = None,
    encoding: Annotated[str, typer.Option(help="Of the CSV file.")] = "utf-8",
) -> None:
    """Predict the target for the rows of a file; prints CSV."""
    if interval is None and (level is not None or sigma is not None):
        raise OptionError(f"{'--sigma' if level is None else '--level'} belongs to an interval; add --interval prediction.")
    from gradfit import api
    from gradfit.data.dataset import real
    from gradfit.data.sources import read
    from gradfit.report.many_storage import is_many

    if is_many(saved):
        raise StorageError(f"{saved!r} holds many fits, and predict takes one; expected a file that fit wrote without --by.")
    result = api.load(saved)
    table = read(data, encoding=encoding)
    noise = real(table[sigma], sigma) if sigma is not None and _as_number(sigma) is None else _sigma(sigma)
    values = result.predict(data=table, interval=interval, level=0.95 if level is None else level, sigma=noise)  # type: ignore[arg-type]
    model = result.record.model
    heads = [*model.data_names, model.target] + ([f"{model.target}_lower", f"{model.target}_upper"] if interval else [])
    columns = [real(table[name], name) for name in model.data_names] + (list(values) if interval else [values])
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([repr(float(cell)) for cell in row] for row in zip(*columns, strict=True))


@app.command()
def report(
    saved: Annotated[str, typer.Argument(help="A result written by --save.")],
    html: Annotated[str | None, typer.Option(help="Write the report as one page.")] = None,
    plot: Annotated[str | None, typer.Option(help="Write a picture of data and fit (.png, .svg, .pdf).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of the report.")] = False,
) -> None:
    """Print the report of a saved fit; write it as a page or a picture."""
    _check_outputs(html=html, plot=plot, inputs=(saved,))
    from gradfit import many
    from gradfit.results import FitResults

    found = many.load(saved)
    if not isinstance(found, FitResults):
        _show(found, json=json, html=html, plot=plot, save=None)
        return
    for option, path in (("--html", html), ("--plot", plot)):
        if path is not None:
            raise OptionError(f"{saved!r} holds many fits, and {option} shows one; leave {option} out.")
    _show_many(found, json=json, save=None)


@app.command()
def compare(
    saved: Annotated[list[str], typer.Argument(help="Results written by --save, two or more, of fits to the same data.")],
    nested: Annotated[
        list[str] | None,
        typer.Option(
            help="SMALLER=LARGER: the first file's model is a special case of the second's, so test it; may be repeated."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON instead of the table.")] = False,
) -> None:
    """Compare saved fits of several models to the same data."""
    from gradfit import api, comparing
    from gradfit.report.many_storage import is_many

    for path in saved:
        if is_many(path):
            raise StorageError(
                f"{path!r} holds many fits, and compare takes one of each file; give files that fit wrote without --by."
            )
    names = comparing.numbered([Path(path).stem for path in saved])
    places = dict(zip(saved, names, strict=True)) | {name: name for name in names}
    told = {}
    for text in nested or ():
        smaller, larger = _pair(text, "--nested")
        told[places.get(smaller, smaller), places.get(larger, larger)] = True
    fits = dict(zip(names, (api.load(path) for path in saved), strict=True))
    with _warnings_in_one_line():
        comparison = comparing.compare(fits, nested=told or None)
    print(comparison.to_json() if json else comparison)
    raise typer.Exit(0 if all(row.success for row in comparison.rows) else 1)


def _show(result: FitResult, *, json: bool, html: str | None, plot: str | None, save: str | None) -> None:
    """Print first, then write: whatever a disk does, the result is seen."""
    print(result.to_json() if json else result.report())
    sys.stdout.flush()
    for path, write in ((save, result.save), (html, result.to_html), (plot, result.plot)):
        if path is not None:
            write(path)
            print(f"wrote {path}", file=sys.stderr)


def _show_many(results: FitResults, *, json: bool, save: str | None) -> None:
    """Print first, then write."""
    if json:
        from gradfit.report.many_rows import json_lines

        for line in json_lines(results.record):
            print(line)
    else:
        print(results.report(rows=LISTED), end="")
        if len(results) > LISTED:
            print(f"\n{LISTED} of {len(results)} fits are listed; --json prints all.")
    sys.stdout.flush()
    if save is not None:
        results.save(save)
        print(f"wrote {save}", file=sys.stderr)


def _check_grouped(by: list[str] | None, grouped: Mapping[str, Any], single: Mapping[str, Any]) -> None:
    """Refuse what belongs to one fit beside --by, and what belongs to --by without it."""
    wrong = [option for option, given in (grouped if by is None else single).items() if given is not None]
    if not wrong:
        return
    if by is None:
        raise OptionError(f"{wrong[0]} is for many fits; name the column that tells them apart too: --by COLUMN.")
    raise OptionError(f"{wrong[0]} is for one fit, and --by makes many; leave one of the two out.")


def _check_suffix(save: str | None, *, many: bool) -> None:
    """Refuse a name whose suffix says another format than what would be written."""
    if save is None:
        return
    table = Path(save).suffix.lower() in TABLES if "\0" not in save else many
    if table and not many:
        raise StorageError(f"--save names {save!r}, and one fit is written as JSON; give a name ending in .json.")
    if many and not table:
        raise StorageError(
            f"--save names {save!r}, and many fits are written as a table; give a name ending in {' or '.join(TABLES)}."
        )


def _check_outputs(
    *, inputs: Sequence[str | None], save: str | None = None, html: str | None = None, plot: str | None = None
) -> None:
    """Refuse what cannot be written, or would overwrite what is read, before an hour of fitting, not after."""
    taken = {Path(path).resolve(): f"{path!r} is read" for path in inputs if path and "\0" not in path}
    for path in (save, html, plot):
        if path is None:
            continue
        if not path or "\0" in path:
            raise StorageError(f"{path!r} is no name of a file; give one.")
        _check_writable(Path(path))
        place = Path(path).resolve()
        if place in taken:
            raise StorageError(f"{path!r} cannot be written: {taken[place]} by the same command; give another name.")
        taken[place] = f"{path!r} is written"
    if html is not None or plot is not None:
        from gradfit.report import plots

        plots.require()
    if plot is not None and Path(plot).suffix.lower() not in PICTURES:
        raise StorageError(f"pictures cannot be written as {Path(plot).suffix!r}; give a name ending in {', '.join(PICTURES)}.")


def _check_writable(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise StorageError(f"there is no folder {str(folder)!r} to write {path.name!r} to; make it first.")
    if path.is_dir():
        raise StorageError(f"{str(path)!r} is a folder; give a file name.")
    if not os.access(folder, os.W_OK):
        raise StorageError(f"the folder {str(folder)!r} may not be written to; choose another.")


def _check_extra(extra: Mapping[str, Any], own: Collection[str]) -> None:
    """Refuse what has an option of its own: --option is for the optimizer's."""
    for name in extra:
        if name in own:
            raise OptionError(
                f"--option sets {name!r}, which is none of the optimizer's; see gradfit fit --help for its own option."
            )


def _model(formula: str | None, model: str | None) -> str | Callable[..., Any]:
    if (formula is None) == (model is None):
        raise ModelError('give a formula, such as "t_c = w*t_u + b", or --model file.py:function, one of them.')
    return formula if formula is not None else _load_function(str(model))


def _load_function(place: str) -> Callable[..., Any]:
    """Run a Python file and take a function from it: the door for models in code."""
    from importlib.util import module_from_spec, spec_from_file_location

    path, _, name = place.rpartition(":")
    if not path or not name:
        raise ModelError(f"--model is {place!r}; expected file.py:function.")
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path!r}; --model takes file.py:function.")
    spec = spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path!r} is no Python file; --model takes file.py:function.")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever that file does when it is run
        raise ModelError(f"{path} raised {type(error).__name__}: {error}; mend the file.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"{path} has no function {name!r}; check the name after the colon.")
    return function  # type: ignore[no-any-return]


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise OptionError(f"{option} has {text!r}; expected NAME=VALUE.")
    return name.strip(), value.strip()


def _numbers(text: str | None, option: str) -> dict[str, float] | None:
    """Read ``w=1,b=0``."""
    if text is None:
        return None
    result = {}
    for part in text.replace("，", ",").split(","):
        name, value = _pair(part, option)
        number = _as_number(value)
        if number is None:
            raise OptionError(f"{option} has {part.strip()!r}; expected a number after '='.")
        if name in result:
            raise OptionError(f"{option} names {name!r} twice.")
        result[name] = number
    return result


def _bounds(text: str | None) -> dict[str, tuple[float | None, float | None]] | None:
    """Read ``w=0:,b=-20:20``."""
    if text is None:
        return None
    result: dict[str, tuple[float | None, float | None]] = {}
    for part in text.replace("，", ",").split(","):
        name, value = _pair(part, "--bounds")
        sides = value.replace("：", ":").split(":")
        limits = [_as_number(side) if side.strip() else None for side in sides]
        bad = any(limit is None and side.strip() for limit, side in zip(limits, sides, strict=True))
        if len(sides) != 2 or bad:
            raise OptionError(f"--bounds has {part.strip()!r}; expected NAME=LOWER:UPPER, either side may be empty.")
        if name in result:
            raise OptionError(f"--bounds names {name!r} twice.")
        result[name] = (limits[0], limits[1])
    return result


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """Read NAME=VALUE, each name once."""
    result: dict[str, str] = {}
    for name, value in (_pair(text, option) for text in texts or ()):
        if name in result:
            raise OptionError(f"{option} names {name!r} twice.")
        result[name] = value
    return result


def _settings(texts: list[str] | None, option: str) -> dict[str, Any]:
    """Read NAME=VALUE of torch's options: numbers, true, false, none, tuples with commas, else text."""
    return {name: _setting(value) for name, value in _pairs(texts, option).items()}


def _setting(value: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    if "," in value:
        return tuple(_setting(part.strip()) for part in value.strip("()[]").split(",") if part.strip())
    try:
        return int(value)
    except ValueError:
        number = _as_number(value)
        return value if number is None else number


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _sigma_x(text: str | None) -> Any:
    """Read a column or a number, or ``u=COL,v=0.1``."""
    if text is None or "=" not in text:
        return _sigma(text)
    return {name: _sigma(value) for name, value in _pairs(text.replace("，", ",").split(","), "--sigma-x").items()}


def _sigma(text: str | None) -> float | str | None:
    number = None if text is None else _as_number(text)
    return text if number is None else number


def _validation(text: str | None) -> float | str | None:
    """A number is a fraction, anything else a file."""
    if text is None:
        return None
    number = _as_number(text)
    if number is None and not Path(text).exists():
        raise DataError(f"--validation is {text!r}; expected a fraction such as 0.2, or an existing file.")
    return text if number is None else number


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and give the exit code."""
    _tolerate_narrow_terminals()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = app(given or ["--help"], prog_name="gradfit", standalone_mode=False)
    except typer.TyperException as error:
        return _complain(error.format_message())
    except GradfitError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("gradfit: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `gradfit ... | head`
        _close_stdout()
        return 0
    except OSError as error:  # stdout goes to a full disk
        _close_stdout()
        return _complain(f"the output cannot be written: {error.strerror or error}; look at where it goes.")
    if code == INTERRUPTED:  # typer turns Ctrl-C into this exit
        print("gradfit: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _tolerate_narrow_terminals() -> None:
    """Print ? for a letter that the terminal's encoding does not have, rather than fail after the fit."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: there is nobody to read it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - it lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _close_stdout() -> None:
    """Send what is still in the buffer nowhere: Python would try again at its end, and fail loudly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> int:
    print(f"gradfit: {' '.join(message.split())}", file=sys.stderr)
    return 2
