"""What the command line and the jobs share: options, and how errors reach the user.

Options that mirror a configuration field are made from it, so that each is described once.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ssray.cli.printable import say
from ssray.cluster.environment import quiet_local_ray
from ssray.config import Compute, parse
from ssray.data.labels import GOOD
from ssray.errors import SsrayError
from ssray.recipes.request import RecipeRequest

Command = TypeVar("Command", bound=Callable[..., Any])

_WORKERS = ("workers", "cpus_per_worker", "gpus_per_worker", "device", "precision")
SCORING = (*_WORKERS, "backend")
TRAINING = (
    *_WORKERS,
    "images_per_step",
    "compile",
    "memory_gib",
    "accumulate",
    "max_minutes",
    "checkpoint_minutes",
    "restarts",
    "min_workers",
    "seed",
)

data_option = click.option(
    "--data", "root", required=True, metavar="ROOT", help="Folder or URI above the categories."
)
models_option = click.option(
    "--models", "store", required=True, metavar="STORE", help="Folder or URI of the model store."
)
categories_option = click.option(
    "--category", "only", multiple=True, metavar="C", help="Repeatable; default: all."
)
out_option = click.option(
    "--out", required=True, metavar="DIR", help="Folder or URI for the results."
)
good_name_option = click.option(
    "--good-name",
    default=GOOD,
    show_default=True,
    metavar="FOLDER",
    help="What the folders of good images are called in the data set: CATEGORY/train/FOLDER, "
    "CATEGORY/test/FOLDER.",
)
maps_option = click.option(
    "--maps",
    metavar="DIR",
    help="Also keep every anomaly map, as CATEGORY/TYPE/NAME.npy: float32, at the resolution of "
    "the mask.",
)


events_option = click.option(
    "--tensorboard",
    "events",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write TensorBoard events into this local folder.",
)

force_option = click.option(
    "--force",
    is_flag=True,
    help="Put a model into use even if it tells synthetic defects from good parts hardly better "
    "than guessing; otherwise the version in use stays, and the exit code is 1.",
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--recipe`` and ``--set``; the command receives one ``RecipeRequest``."""

    @click.option(
        "--recipe",
        default="compact",
        show_default=True,
        metavar="NAME|FILE",
        help="compact, or paper for GPUs, choose their texture or object recipe by the training "
        "images, paper first by the category's name; paper-as-published has the paper's own "
        "settings; or a single recipe's name, or a JSON file.",
    )
    @click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one setting of the recipe; repeatable.",
    )
    @click.option(
        "--false-alarm-rate",
        "rate",
        type=float,
        metavar="SHARE",
        help="Share of the defect-free images that may be flagged, for --set "
        "decision.false_alarm_rate=SHARE.",
    )
    @click.option(
        "--calibration-folds",
        "folds",
        type=int,
        metavar="K",
        help="Train K more models so that every image counts for the threshold, at K times the "
        "cost; for --set decision.folds=K.",
    )
    @click.option(
        "--features",
        metavar="FILE|none",
        help="Weights of the pretrained network that the second expert sees by, such as those of "
        "a ResNet; none does without it. Default: EfficientNet-Lite0, where 'ssray[features]' is "
        "installed.",
    )
    @functools.wraps(command)
    def with_recipe(
        *,
        recipe: str,
        settings: tuple[str, ...],
        features: str | None,
        rate: float | None,
        folds: int | None,
        **others: Any,
    ) -> Any:
        if rate is not None:
            settings += (f"decision.false_alarm_rate={rate}",)
        if folds is not None:
            settings += (f"decision.folds={folds}",)
        return command(recipe=RecipeRequest(recipe, settings, features), **others)

    return with_recipe


def compute_options(*names: str) -> Callable[[Command], Command]:
    """Adds an option for each named field of ``Compute``."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            option = _option(name, Compute.model_fields[name])
            command = option(command)
        return command

    return decorate


def compute_from(values: dict[str, Any]) -> Compute:
    """The ``Compute`` that parsed options describe.

    Raises:
        ConfigError: if a value lies outside its range.
    """
    return parse(Compute, values, "options")


def settings_help(settings: BaseModel, prefix: str = "") -> list[str]:
    """A line for every setting: dotted key, value and meaning."""
    lines = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            lines += settings_help(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name} = {value!r}: {field.description}")
    return lines


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    flag = f"--{name.replace('_', '-')}"
    return click.option(
        f"{flag}/--no-{flag.removeprefix('--')}" if field.annotation is bool else flag,
        name,
        type=_click_type(field.annotation),
        default=field.default,
        show_default=field.default is not None,
        help=f"{field.description}.",
    )


def _click_type(annotation: Any) -> click.ParamType[Any] | type:
    if get_origin(annotation) in (Union, types.UnionType):
        [annotation] = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    assert isinstance(annotation, type)
    return annotation


def run(command: click.Command) -> None:
    """Runs a command as a program; a user's mistake is one line and exit code 2."""
    quiet_local_ray()
    try:
        sys.exit(command.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (SsrayError, OSError) as error:
        say(f"Error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, SsrayError) else 2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
