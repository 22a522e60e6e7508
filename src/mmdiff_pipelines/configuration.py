"""Constructor arguments: inherited from a diffusers class, so that they cannot drift from it, and read from a config."""

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


class KnownArgumentsMixin:
    """Refuses a config with arguments that the class does not know, which diffusers ignores with a warning at most.

    They are what a newer version of this package has learnt since: without them the model would be another one.
    """

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs) -> tuple[dict, dict, dict]:
        init_dict, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        unknown = sorted((unused.keys() & config_dict.keys()) - kwargs.keys())
        if unknown:
            raise ValueError(
                f"The config of this {cls.__name__} has arguments that it does not know: {', '.join(unknown)}. If a "
                "newer mmdiff_pipelines saved it, upgrade: `pip install --upgrade mmdiff_pipelines`."
            )
        return init_dict, unused, hidden
