"""The names of the served models: the base, and each of its adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ServeError
from edge.llama.loading import Adapter
from edge.serve.request import BadRequestError


@dataclass(frozen=True)
class ServedNames:
    """`base`: the name of the model file; `adapters`: by name, in the order of the command line.

    `own`: the adapter that belongs to the model, and that its name means; see `edge.llama.loading.with_own_adapter`.
    """

    base: str
    adapters: dict[str, Adapter]
    own: Adapter | None = None

    @property
    def all(self) -> list[str]:
        """Every name, the base first."""
        return [self.base, *self.adapters]

    def choose(self, wanted: str | None) -> tuple[str, Adapter | None]:
        """The name and the adapter for the `model` of a request; None for a base without its own adapter.

        Without adapters any text means the base, and with one adapter any text but the base's name means that adapter.
        Raises BadRequestError for another text if there are several adapters.
        """
        if wanted == self.base or not self.adapters:
            return self.base, self.own
        if wanted in self.adapters:
            return wanted, self.adapters[wanted]
        if len(self.adapters) == 1:
            return next(iter(self.adapters.items()))
        named = "no model is named" if wanted is None else f"the model {wanted[:100]!r} does not exist"
        raise BadRequestError(
            f"{named}; use one of {', '.join(self.all)}", "model", status=404, code="model_not_found"
        )


def served_names(model: Path, adapters: Sequence[Adapter]) -> ServedNames:
    """The names of a model file and its adapters: those of the files. Raises ServeError if two names are equal."""
    base, named, own = model.stem, dict[str, Adapter](), None
    for adapter in adapters:
        if adapter.is_default:
            own = adapter
            continue
        name = adapter.path.stem
        if name == base or name in named:
            raise ServeError(
                f"{adapter.path}: {name} is also the name of another file that is served; rename one of them"
            )
        named[name] = adapter
    return ServedNames(base, named, own)
