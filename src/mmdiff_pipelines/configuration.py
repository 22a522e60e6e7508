"""Constructor arguments inherited from a diffusers class, so that they cannot drift from it."""

import functools
import inspect
from collections.abc import Callable

from diffusers.configuration_utils import register_to_config


def inherit_config(parent: type) -> Callable:
    """Decorate a keyword-only `__init__(self, *, own=..., **parent_arguments)`: it takes the parent's parameters too.

    The parent's come first and keep their order; a parameter that both name keeps the parent's place and takes our
    default. All of them are registered in the config, and an unknown one raises, as in diffusers.
    """
    inherited = list(inspect.signature(parent.__init__).parameters.values())

    def decorate(init: Callable) -> Callable:
        own = {
            parameter.name: parameter
            for parameter in inspect.signature(init).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        parameters = [p.replace(default=own.pop(p.name).default) if p.name in own else p for p in inherited]
        signature = inspect.Signature([*parameters, *own.values()])

        @functools.wraps(init)
        def wrapper(self, *args, **kwargs):
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            init(arguments.pop("self"), **arguments)

        wrapper.__signature__ = signature
        return register_to_config(wrapper)

    return decorate
