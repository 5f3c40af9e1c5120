"""Turns functions into commands; options shared by several commands are dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any, get_type_hints

import typer

from trunkline_router.cli.operator_client import (
    CommandFailed,
    OperatorClient,
    RouterTarget,
    connect,
    make_console,
    printable,
)

Body = Callable[..., None]


def group(help_text: str) -> typer.Typer:
    """Make an empty group of commands."""
    return typer.Typer(
        help=help_text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )


def command(app: typer.Typer, name: str, *examples: str) -> Callable[[Body], Body]:
    """Make a function a command. Its first parameter must be an OperatorClient; its docstring is the help.

    A parameter whose type is a dataclass stands for one option per field. Expected failures print one line on
    stderr and exit with code 1.
    """

    def make(body: Body) -> Body:
        parameters = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        bundles = {each.name: each.annotation for each in parameters if _is_bundle(each)}

        def run(**values: Any) -> None:
            target = _pop_bundle(RouterTarget, values)
            values |= {name: _pop_bundle(bundle, values) for name, bundle in bundles.items()}
            _run(target, lambda client: body(client, **values))

        options = [option for each in parameters for option in _options(each)]
        options += _options_of_bundle(RouterTarget)
        run.__doc__ = body.__doc__
        run.__name__ = body.__name__
        run.__annotations__ = {each.name: each.annotation for each in options}
        run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        app.command(name, epilog=_epilog(examples))(run)
        return body

    return make


def _run(target: RouterTarget, body: Callable[[OperatorClient], None]) -> None:
    try:
        with connect(target) as client:
            body(client)
    except CommandFailed as error:
        make_console(stderr=True).print(printable(str(error)), style="red", soft_wrap=True)
        raise typer.Exit(1) from None


def _epilog(examples: Sequence[str]) -> str:
    """The examples below a heading, each in a paragraph of its own."""
    return "\n\n".join(["Examples:", *examples]) if examples else ""


def _is_bundle(parameter: Parameter) -> bool:
    return dataclasses.is_dataclass(parameter.annotation)


def _options(parameter: Parameter) -> list[Parameter]:
    if _is_bundle(parameter):
        return _options_of_bundle(parameter.annotation)
    return [parameter.replace(kind=Parameter.KEYWORD_ONLY)]


def _options_of_bundle(bundle: Any) -> list[Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    return [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in dataclasses.fields(bundle)
    ]


def _pop_bundle(bundle: Any, values: dict[str, Any]) -> Any:
    return bundle(**{each.name: values.pop(each.name) for each in dataclasses.fields(bundle)})
