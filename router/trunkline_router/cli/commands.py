"""Makes functions commands: options that several have are said once, as dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any, get_type_hints

import typer

from trunkline_router.cli.operator import CommandFailed, Operator, RouterTarget, connected, console, printable

Body = Callable[..., None]


def group(about: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=about, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def command(app: typer.Typer, name: str, *examples: str) -> Callable[[Body], Body]:
    """Make a function a command. The first parameter must be an Operator.

    A parameter that is a dataclass stands for one option a field. What can be foreseen to go wrong is one
    line on stderr and exit code 1.
    """

    def make(body: Body) -> Body:
        parameters = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        bundles = {each.name: each.annotation for each in parameters if _is_bundle(each)}

        def called(**given: Any) -> None:
            target = _taken(RouterTarget, given)
            given |= {name: _taken(bundle, given) for name, bundle in bundles.items()}
            _run(target, lambda operator: body(operator, **given))

        options = [option for each in parameters for option in _options(each)]
        options += _fields(RouterTarget)
        called.__doc__ = body.__doc__
        called.__name__ = body.__name__
        called.__annotations__ = {each.name: each.annotation for each in options}
        called.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        app.command(name, epilog=_epilog(examples))(called)
        return body

    return make


def _run(target: RouterTarget, body: Callable[[Operator], None]) -> None:
    try:
        with connected(target) as operator:
            body(operator)
    except CommandFailed as error:
        console(aside=True).print(printable(str(error)), style="red", soft_wrap=True)
        raise typer.Exit(1) from None


def _epilog(examples: Sequence[str]) -> str:
    """Each on a line of its own, below a heading."""
    return "\n\n".join(["Examples:", *examples]) if examples else ""


def _is_bundle(parameter: Parameter) -> bool:
    return dataclasses.is_dataclass(parameter.annotation)


def _options(parameter: Parameter) -> list[Parameter]:
    return _fields(parameter.annotation) if _is_bundle(parameter) else [_by_name(parameter)]


def _by_name(parameter: Parameter) -> Parameter:
    return parameter.replace(kind=Parameter.KEYWORD_ONLY)


def _fields(bundle: Any) -> list[Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    return [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in dataclasses.fields(bundle)
    ]


def _taken(bundle: Any, given: dict[str, Any]) -> Any:
    return bundle(**{each.name: given.pop(each.name) for each in dataclasses.fields(bundle)})
